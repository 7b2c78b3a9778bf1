"""The model file: potential, driver, judge and calibration; how they are fitted, evaluated, scored and exported."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "export": ("export_torchscript",),
        "fit": ("calibrate", "complete_model", "fit_model", "make_potential"),
        "inference": ("Evaluated", "evaluate_frames"),
        "manifest": ("read_manifest",),
        "metrics": (
            "auroc",
            "coverage",
            "gaussian_crps",
            "gaussian_nll",
            "miscalibration_area",
            "sharpness",
            "spearman",
        ),
        "model": ("Prediction", "UncertaintyModel"),
        "readouts": ("fit_uncertainty",),
        "score": ("score_model",),
        "splitting": ("Dealt", "Split"),
        "training": ("TrainingOptions", "TrainingResult", "train"),
    },
)
