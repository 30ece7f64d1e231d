"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_backbones() -> list[Registration]:
    """The U-Net, and its presets."""
    presets = "itoflow_unet.presets"
    return [
        Registration("unet", "itoflow_unet.unet:UNet", "Residual U-Net for signals, images and volumes"),
        Registration("unet-ddpm", f"{presets}:DDPM", "U-Net of DDPM", aliases=("ddpm",)),
        Registration("unet-ddpmpp", f"{presets}:DDPMPP", "U-Net DDPM++ of score SDEs", aliases=("ddpmpp",)),
        Registration("unet-ncsnpp", f"{presets}:NCSNPP", "U-Net NCSN++ of score SDEs", aliases=("ncsnpp",)),
        Registration("unet-adm", f"{presets}:ADM", "U-Net of the ablated diffusion model", aliases=("adm",)),
        Registration("unet-small", f"{presets}:Small", "U-Net for 8x8 to 28x28 on a CPU", aliases=("small",)),
        Registration("unet-diffusers", "itoflow_unet.checkpoint:Checkpoint", "U-Net of a checkpoint of diffusers"),
    ]
