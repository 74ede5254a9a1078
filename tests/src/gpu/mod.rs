//! What the kernels of GPUs are compared by, be it on a card or on the simulator of one: one harness for both.

pub mod alone;
pub mod experts;
pub mod model;
pub mod ops;
pub mod plans;
pub mod product;
pub mod products;

use std::path::PathBuf;
use std::sync::Arc;

use bundle_format::target::Target;
use fastrun::device::Stability;
use fastrun::device::gpu::{GpuDevice, GpuOptions};
use fastrun::load::Loaded;

/// What executes kernels.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub target: Target,
    simulate: bool,
}

impl Machine {
    /// The GPU of this computer, whose target FASTINFER_GPU names (default: sm_90a).
    ///
    /// # Panics
    /// No target has that name.
    pub fn card() -> Machine {
        let name = std::env::var("FASTINFER_GPU").unwrap_or("sm_90a".into());
        let target = Target::ALL.iter().find(|target| target.name() == name);
        Machine {
            target: *target.unwrap_or_else(|| panic!("FASTINFER_GPU: no target is {name}")),
            simulate: false,
        }
    }

    /// The simulator of a gfx1151, with all its checks.
    pub fn simulator() -> Machine {
        Machine {
            target: Target::Gfx1151,
            simulate: true,
        }
    }

    /// A device for a bundle, with so many bytes of KV pools, which runs by a stability profile (none: the bundle's own).
    ///
    /// # Panics
    /// There is no such GPU, or too little memory.
    pub fn open(
        &self,
        loaded: Arc<Loaded>,
        kv_bytes: u64,
        stability: Option<Stability>,
    ) -> GpuDevice {
        let options = GpuOptions {
            kv_bytes: Some(kv_bytes),
            stability,
            simulate: self.simulate,
        };
        GpuDevice::open(loaded, &options)
            .unwrap_or_else(|e| panic!("there is no GPU that runs it: {e}"))
    }
}

/// The simulator as a HIP runtime that `fastrun` can load (`FASTRUN_HIP`), which cargo puts beside the tests that depend on it.
///
/// # Panics
/// It is not there.
pub fn hip_library() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    let folders = test.ancestors().skip(1).take(2);
    let mut paths = folders.map(|folder| folder.join("libgfx11_hip.so"));
    paths
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no libgfx11_hip.so beside {}", test.display()))
}
