"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_datasets() -> list[Registration]:
    """The data sets."""
    return [
        Registration("two-moons", "itoflow_data.two_moons:TwoMoons", "Two interleaved half circles, 2-D"),
        Registration(
            "eight-gaussians", "itoflow_data.eight_gaussians:EightGaussians", "Eight Gaussians on a ring, 2-D"
        ),
        Registration("checkerboard", "itoflow_data.checkerboard:Checkerboard", "Squares of a 4 x 4 board, 2-D"),
        Registration("swiss-roll", "itoflow_data.swiss_roll:SwissRoll", "A spiral, the cross-section of a roll, 2-D"),
        Registration(
            "gaussian-mixture",
            "itoflow_data.gaussian_mixture:GaussianMixture",
            "Isotropic Gaussians in any dimension, with their exact density",
        ),
        Registration("digits", "itoflow_data.digits:Digits", "Handwritten digits of scikit-learn, (1, 8, 8)"),
        Registration(
            "fashion-mnist", "itoflow_data.fashion_mnist:FashionMNIST", "Clothing of ten kinds in grey, (1, 28, 28)"
        ),
        Registration(
            "gaussianised",
            "itoflow_data.gaussianised:Gaussianised",
            "Another data set, each value mapped to a standard normal, invertibly",
        ),
        Registration("array-file", "itoflow_data.arrays:ArrayFile", "Arrays of a .npy or .npz file"),
        Registration("idx-files", "itoflow_data.idx:IdxFiles", "A folder of IDX files, as MNIST has them"),
        Registration("image-folder", "itoflow_data.images:ImageFolder", "A folder of images, sub-folders as classes"),
    ]
