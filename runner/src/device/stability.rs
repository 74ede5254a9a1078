//! How far a bundle's kernels keep from what a GPU is known to fail at.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A stability profile: the stricter, the slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stability {
    Fast,
    Balanced,
    Strict,
}

impl Stability {
    /// The next stricter one; none behind the strictest.
    pub fn stricter(self) -> Option<Stability> {
        match self {
            Stability::Fast => Some(Stability::Balanced),
            Stability::Balanced => Some(Stability::Strict),
            Stability::Strict => None,
        }
    }
}

impl fmt::Display for Stability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stability::Fast => "fast",
            Stability::Balanced => "balanced",
            Stability::Strict => "strict",
        })
    }
}
