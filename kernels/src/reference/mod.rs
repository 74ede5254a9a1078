//! The naive f32 reference of every op and of every region instruction: what "right" means.
//!
//! Nothing here is fast on purpose, and nothing here shares code with the microkernels that are compared with it. The
//! runner's reference device executes whole bundles with it: that is the oracle of the project's numerics.

mod attention;
pub mod kv_q8_0;
mod matmul;
pub mod q11;
pub mod q14;
pub mod q8;
pub mod q8k;
mod region;
mod route;
mod rows;

pub use attention::{Attention, KvSource, attention};
pub use matmul::{WeightView, matmul};
pub use region::{Operands, Tile, TileRange, run_region};
pub use route::{PairList, RouteSpec, choose, list_pairs};
pub use rows::{embed_row, rope_row};
