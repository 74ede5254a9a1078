//! How a [`Runner`](super::Runner) opens a bundle.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Config;
use crate::Error;
use crate::device::cpu::{CpuDevice, CpuOptions};
use crate::device::gpu::{GpuDevice, GpuOptions};
use crate::device::reference::{ReferenceDevice, ReferenceOptions};
use crate::device::{Device, Stability};
use crate::load::Loaded;
use crate::spec::NgramSpec;
use crate::supervise::Supervise;

/// What runs a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// The bundle's code, on what it was compiled for.
    #[default]
    Own,
    /// Its code, on a processor; an error for a bundle that is for another kind.
    Cpu,
    /// Its code, on a GPU; likewise.
    Gpu,
    /// Its code for gfx1151, instruction by instruction on a processor: very slow, for tests (feature `sim`).
    Sim,
    /// The bundle's meaning, in f32: slow, the measure of the others.
    Reference,
}

/// Take the rest from the default (`..RunnerOptions::default()`), for there will be more fields.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    pub device: DeviceKind,
    /// Threads that compute; none: one for each physical core.
    pub threads: Option<usize>,
    /// Bytes of all KV pools; none: what the device thinks fit ([`CpuOptions::kv_bytes`]). Not for [`DeviceKind::Reference`].
    pub kv_memory: Option<u64>,
    /// Requests that may wait while others run; one more is [`Error::Busy`].
    pub queue: usize,
    /// Whether what was computed for one request is found by others that start alike.
    pub prefix_cache: bool,
    /// Guess tokens ahead; answers are the same either way.
    pub spec: Option<NgramSpec>,
    /// Most prompt tokens of a step in which others decode ([`Config::token_budget`]).
    pub token_budget: Option<u32>,
    /// Check the hashes of all weights first. It reads the whole file.
    pub verify: bool,
    /// The stability profile to run by, of those that a bundle for a GPU may have; none: its own.
    pub stability: Option<Stability>,
    /// Keep the engine in a process of its own, which is started again when it dies: requests go on where they were. None:
    /// a thread of this one.
    pub supervise: Option<Supervise>,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            device: DeviceKind::default(),
            threads: None,
            kv_memory: None,
            queue: 1024,
            prefix_cache: true,
            spec: None,
            token_budget: None,
            verify: false,
            stability: None,
            supervise: None,
        }
    }
}

impl RunnerOptions {
    /// How the engine serves: a GPU works beside the host, other devices while they are submitted to.
    pub(crate) fn engine_config(&self, loaded: &Loaded) -> Config {
        Config {
            in_flight: match self.chosen(loaded) {
                DeviceKind::Gpu | DeviceKind::Sim => 2,
                DeviceKind::Own | DeviceKind::Cpu | DeviceKind::Reference => 1,
            },
            queue: self.queue,
            prefix_cache: self.prefix_cache,
            spec: self.spec,
            token_budget: self.token_budget,
            ..Config::new(loaded.plan().limits, loaded.manifest().model.vocab)
        }
    }

    /// Whether it is a GPU that runs the bundle.
    pub(crate) fn is_gpu(&self, loaded: &Loaded) -> bool {
        matches!(self.chosen(loaded), DeviceKind::Gpu | DeviceKind::Sim)
    }

    /// The profile that a bundle was compiled by, where it has profiles and runs on its GPU.
    pub(crate) fn own_stability(&self, loaded: &Loaded) -> Option<Stability> {
        let own = loaded.plan().stability.first()?.stability;
        self.is_gpu(loaded).then_some(own)
    }

    /// The device, where it is the bundle's own its kind.
    fn chosen(&self, loaded: &Loaded) -> DeviceKind {
        match self.device {
            DeviceKind::Own if loaded.manifest().target.is_gpu() => DeviceKind::Gpu,
            DeviceKind::Own => DeviceKind::Cpu,
            kind => kind,
        }
    }

    /// Opens the device, on the thread that is to use it.
    pub(crate) fn open_device(&self, loaded: &Arc<Loaded>) -> Result<Box<dyn Device>, Error> {
        Ok(match self.chosen(loaded) {
            kind @ (DeviceKind::Gpu | DeviceKind::Sim) => {
                let options = GpuOptions {
                    kv_bytes: self.kv_memory,
                    stability: self.stability,
                    simulate: kind == DeviceKind::Sim,
                };
                Box::new(GpuDevice::open(loaded.clone(), &options)?)
            }
            DeviceKind::Own | DeviceKind::Cpu => {
                let options = CpuOptions {
                    threads: self.threads,
                    kv_bytes: self.kv_memory,
                    ..CpuOptions::default()
                };
                Box::new(CpuDevice::open(loaded.clone(), &options)?)
            }
            DeviceKind::Reference => {
                if self.kv_memory.is_some() {
                    return Err(Error::Unsupported(
                        "the reference device keeps its KV cache in f32, in memory of its own; leave kv_memory out".into(),
                    ));
                }
                let options = ReferenceOptions {
                    threads: self.threads,
                    ..ReferenceOptions::default()
                };
                Box::new(ReferenceDevice::open(loaded.clone(), &options)?)
            }
        })
    }
}
