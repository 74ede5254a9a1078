//! What code for every GPU shares: choosing the kernels of a plan, regions as C++, routers.

pub mod floats;
pub mod kernels;
pub mod region;
mod route;
pub mod segments;
pub mod shapes;
pub mod work;
