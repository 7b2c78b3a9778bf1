"""From a function with gradients inside to one fast graph: flattening, runners, cache, fused evaluation."""
