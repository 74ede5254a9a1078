//! Maps and runs a FastInference bundle.
