//! What code for every GPU shares: choosing the kernels of a plan, and regions as C++.

pub mod kernels;
pub mod region;
pub mod segments;
pub mod shapes;
pub mod work;
