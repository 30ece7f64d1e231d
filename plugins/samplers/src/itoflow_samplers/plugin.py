"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_samplers() -> list[Registration]:
    """Deterministic samplers run the probability-flow ODE, the others the reverse SDE."""
    return [
        Registration(
            "auto", "itoflow_samplers.auto:Auto", "The default: times and coefficients for the evaluations given"
        ),
        Registration("euler", "itoflow_samplers.ode:Euler", "Euler on the probability-flow ODE"),
        Registration("heun", "itoflow_samplers.ode:Heun", "Heun on the probability-flow ODE, order 2 (EDM)"),
        Registration("midpoint", "itoflow_samplers.ode:Midpoint", "Midpoint rule on the probability-flow ODE, order 2"),
        Registration("rk4", "itoflow_samplers.ode:RK4", "Runge-Kutta of order 4 on the probability-flow ODE"),
        Registration("adams", "itoflow_samplers.multistep:Adams", "Adams-Bashforth in velocity, noise, data or v"),
        Registration(
            "exponential-adams",
            "itoflow_samplers.multistep:ExponentialAdams",
            "Exponential Adams in noise, data or v, orders 1 to 4",
        ),
        Registration("deis", "itoflow_samplers.multistep:DEIS", "DEIS: noise as a polynomial in t or rho"),
        Registration(
            "dpm-solver++",
            "itoflow_samplers.dpm_solver:DPMSolver",
            "DPM-Solver++, singlestep or multistep, order 2 or 3",
        ),
        Registration("unipc", "itoflow_samplers.unipc:UniPC", "UniPC, a predictor and a corrector for one evaluation"),
        Registration("ddim", "itoflow_samplers.ddim:DDIM", "DDIM, deterministic to ancestral by eta"),
        Registration("ancestral", "itoflow_samplers.ddim:Ancestral", "Ancestral sampling (DDPM)"),
        Registration("euler-maruyama", "itoflow_samplers.sde:EulerMaruyama", "Euler-Maruyama on the reverse SDE"),
        Registration("reverse-diffusion", "itoflow_samplers.sde:ReverseDiffusion", "Reverse diffusion (score SDE)"),
        Registration(
            "sde-dpm-solver++", "itoflow_samplers.sde_dpm_solver:SDEDPMSolver", "SDE-DPM-Solver++, orders 1 and 2"
        ),
        Registration("sa-solver", "itoflow_samplers.sa_solver:SASolver", "SA-Solver, stochastic Adams, orders 1 to 4"),
        Registration(
            "stochastic-adams", "itoflow_samplers.sa_solver:StochasticAdams", "Stochastic Adams in v, orders 1 to 4"
        ),
        Registration("churn", "itoflow_samplers.churn:Churn", "Heun with churn (EDM)", aliases=("edm-churn",)),
        Registration(
            "predictor-corrector",
            "itoflow_samplers.predictor_corrector:PredictorCorrector",
            "A predictor and Langevin corrector steps (score SDE)",
            aliases=("pc",),
        ),
    ]
