//! Compiles a GGUF model into a FastInference bundle.
