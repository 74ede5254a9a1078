//! The bundle that a command is about, opened.

use std::path::Path;
use std::sync::Arc;

use bundle_format::model::Manifest;
use bundle_format::plan::{Limits, Plan};
use bundle_format::tokenizer::Special;
use fastrun::device::Device;
use fastrun::device::cpu::{CpuDevice, CpuOptions};
use fastrun::device::gpu::{GpuDevice, GpuOptions};
use fastrun::device::reference::{ReferenceDevice, ReferenceOptions};
use fastrun::load::Loaded;
use fastrun::tokenizer::{EncodeOptions, Tokenizer};
use fastrun::{Config, Error};
use kernels::cpu::Level;

use super::args::{DeviceArgs, DeviceKind, Verify};
use super::verify;

/// An opened bundle, and what to run it with.
pub struct Session {
    loaded: Arc<Loaded>,
    kind: DeviceKind,
    /// None: the device's default.
    threads: Option<usize>,
    /// Likewise.
    kv_memory: Option<u64>,
    /// Likewise.
    level: Option<Level>,
}

impl Session {
    /// Opens a bundle to run it.
    pub fn open(path: &Path, args: &DeviceArgs) -> Result<Session, Error> {
        let loaded = Loaded::open(path)?;
        if args.verify == Verify::Full {
            verify::weights(&loaded)?;
        }
        let kind = match args.device {
            DeviceKind::Auto if loaded.manifest().target.is_gpu() => DeviceKind::Gpu,
            DeviceKind::Auto => DeviceKind::Cpu,
            kind => kind,
        };
        if args.cpu_level.is_some() && kind != DeviceKind::Cpu {
            return Err(Error::User(
                "--cpu-level is about a processor's kernels, and something else computes here; leave it out".into(),
            ));
        }
        Ok(Session {
            loaded: Arc::new(loaded),
            kind,
            threads: args.threads,
            kv_memory: args.kv_memory,
            level: args.cpu_level,
        })
    }

    /// The tokenizer, where it lies in the bundle.
    pub fn tokenizer(&self) -> Result<Tokenizer<'_>, Error> {
        Tokenizer::open(self.loaded.bundle().tokenizer())
    }

    /// The ids of a text that is nothing but text, with BOS and EOS as the model wants them.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, Error> {
        let options = EncodeOptions {
            parse_special: false,
            add_special: true,
        };
        Ok(self.tokenizer()?.encode(text, options))
    }

    /// BOS, if the model wants a text to start with it.
    pub fn bos(&self) -> Result<Option<u32>, Error> {
        let tokenizer = self.tokenizer()?;
        let vocab = tokenizer.vocab();
        let bos = vocab.special(Special::Bos);
        Ok(bos.filter(|_| vocab.flags().add_bos))
    }

    pub fn device_kind(&self) -> DeviceKind {
        self.kind
    }

    /// Threads of a reference device.
    pub fn reference_threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(all)
    }

    /// The device that the command line asks for.
    pub fn device(&self) -> Result<Box<dyn Device>, Error> {
        Ok(match self.kind {
            DeviceKind::Auto | DeviceKind::Cpu => Box::new(self.cpu_device(false)?),
            DeviceKind::Gpu | DeviceKind::Sim => Box::new(self.gpu_device()?),
            DeviceKind::Reference => Box::new(self.reference_device()?),
        })
    }

    /// A CPU device, which measures its launches where `profile` is set.
    pub fn cpu_device(&self, profile: bool) -> Result<CpuDevice, Error> {
        let options = CpuOptions {
            threads: self.threads,
            kv_bytes: self.kv_memory,
            profile,
            level: self.level,
        };
        CpuDevice::open(self.loaded.clone(), &options)
    }

    pub fn gpu_device(&self) -> Result<GpuDevice, Error> {
        let options = GpuOptions {
            kv_bytes: self.kv_memory,
            stability: None,
            simulate: self.kind == DeviceKind::Sim,
        };
        GpuDevice::open(self.loaded.clone(), &options)
    }

    pub fn reference_device(&self) -> Result<ReferenceDevice, Error> {
        if self.kv_memory.is_some() {
            return Err(Error::User(
                "the reference device keeps its KV cache in f32, in memory of its own; leave --kv-memory out".into(),
            ));
        }
        let options = ReferenceOptions {
            threads: Some(self.reference_threads()),
            ..ReferenceOptions::default()
        };
        ReferenceDevice::open(self.loaded.clone(), &options)
    }

    pub fn plan(&self) -> &Plan {
        self.loaded.plan()
    }

    pub fn manifest(&self) -> &Manifest {
        self.loaded.manifest()
    }

    /// The weights, in the map.
    pub fn weights(&self) -> &[u8] {
        self.loaded.bundle().weights()
    }

    pub fn limits(&self) -> Limits {
        self.plan().limits
    }

    /// Token ids are below this.
    pub fn vocab(&self) -> u32 {
        self.manifest().model.vocab
    }

    /// For an engine on [`Session::device`].
    pub fn engine_config(&self) -> Config {
        Config {
            in_flight: self.in_flight(),
            ..Config::new(self.limits(), self.vocab())
        }
    }

    /// Steps that are submitted at a time: a GPU works beside the host, other devices while they are submitted to.
    pub fn in_flight(&self) -> usize {
        match self.kind {
            DeviceKind::Gpu | DeviceKind::Sim => 2,
            DeviceKind::Auto | DeviceKind::Cpu | DeviceKind::Reference => 1,
        }
    }
}
