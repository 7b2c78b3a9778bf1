"""The model file: potential, driver, judge and calibration; how they are fitted, evaluated, scored and exported."""
