//! What the kernel knows of the programs.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use aya::programs::loaded_programs;

use vpn_edge_common::program;

use super::{Datapath, DatapathError, Running};

/// The programs of one [`Datapath`], which may outlive it.
#[derive(Debug)]
pub struct Programs(BTreeMap<u32, ProgramFacts>);

/// What does not change while a program is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    pub name: String,
    /// Instructions that the verifier looked at; Linux 5.16 and newer tell.
    pub instructions: Option<u32>,
    pub loaded: Option<SystemTime>,
}

/// How often a program ran, and for how long in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    pub name: String,
    pub runs: u64,
    pub time: Duration,
}

impl Datapath {
    /// The programs that this datapath loaded, for a look at them later.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn programs(&self) -> Result<Programs, DatapathError> {
        let mut programs = BTreeMap::new();
        for (name, loaded) in self.ebpf.programs() {
            // The object may have programs that are not loaded.
            if loaded.fd().is_err() {
                continue;
            }
            let info = loaded.info().map_err(DatapathError::Programs)?;
            let facts = ProgramFacts {
                // Which of the two it is depends on the kernel alone.
                name: match name {
                    program::INGRESS_FRAGS => program::INGRESS.into(),
                    name => name.to_owned(),
                },
                instructions: info.verified_instruction_count(),
                loaded: info.loaded_at(),
            };
            programs.insert(info.id(), facts);
        }
        Ok(Programs(programs))
    }
}

impl Programs {
    pub fn facts(&self) -> impl Iterator<Item = &ProgramFacts> {
        self.0.values()
    }

    /// Whether the program that runs is one of these.
    #[must_use]
    pub fn has(&self, running: &Running) -> bool {
        self.0.contains_key(&running.id())
    }

    /// How each ran, if the kernel counts at all (`kernel.bpf_stats_enabled`).
    #[must_use]
    pub fn runs(&self) -> Option<Vec<ProgramRuns>> {
        let counts = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").ok()?;
        if counts.trim() != "1" {
            return None;
        }
        // Others load and unload theirs meanwhile: errors are about those.
        let runs = loaded_programs().flatten().filter_map(|info| {
            Some(ProgramRuns {
                name: self.0.get(&info.id())?.name.clone(),
                runs: info.run_count(),
                time: info.run_time(),
            })
        });
        Some(runs.collect())
    }
}
