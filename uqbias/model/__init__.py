"""The model file: potential, driver, judge and calibration; how they are fitted, evaluated, scored and exported."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "export": ("export_torchscript",),
        "fit": ("calibrate", "complete_model", "fit_model", "fit_uncertainty", "make_potential"),
        "inference": ("Evaluated", "evaluate_frames"),
        "metrics": (
            "auroc",
            "coverage",
            "gaussian_crps",
            "gaussian_nll",
            "miscalibration_area",
            "sharpness",
            "spearman",
        ),
        "model": ("Prediction", "UncertaintyModel", "read_manifest"),
        "score": ("score_model",),
        "splitting": ("Dealt", "Split"),
        "training": ("TrainingOptions", "TrainingResult", "train"),
    },
)
