//! Test runs of the running programs.

use std::path::Path;

use aya::TestRun;
use aya::programs::links::FdLink;
use aya::programs::{
    ProgramInfo, SchedClassifier, TestRunOptions, TestRunResult, Xdp, loaded_programs,
};
use aya_obj::programs::XdpAttachType;
use vpn_edge_common::{map, program};

use super::attach::{self, AttachPoint};
use super::{DatapathError, maps};

/// A program in the kernel, attached by any process.
pub struct Running {
    program: Program,
    id: u32,
    /// Whether a pinned link proves that it is attached to its hook.
    pub linked: bool,
}

enum Program {
    Xdp(Xdp),
    Tc(SchedClassifier),
}

/// A program's verdict on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Pass,
    Drop,
    Redirect,
    /// Sent out of the interface on which it arrived.
    Transmit,
    /// A value that none of our programs returns.
    Other(u32),
}

/// The result of a test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub answer: Answer,
    pub frame: Vec<u8>,
}

impl Running {
    /// The program on `hook`, by the link pinned under `root`; none if there is none.
    ///
    /// Before Linux 6.6 tc has no links. Then it is the newest program with its name
    /// that uses the pinned maps, which may be one that another process has loaded
    /// but not attached yet.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the query.
    pub fn find(root: &Path, hook: &AttachPoint) -> Result<Option<Self>, DatapathError> {
        let links = super::folder(root).join("links");
        let link = attach::pinned(&links.join(hook.pin()))?;
        let linked = link.is_some();
        let info = match (link, hook) {
            (Some(link), _) => linked_to(&link)?,
            (None, AttachPoint::UplinkXdp(_)) => None,
            (None, AttachPoint::UplinkTc(_)) => named(root, program::INGRESS_TC)?,
            (None, AttachPoint::Gateway(_)) => named(root, program::EGRESS)?,
        };
        let Some(info) = info else {
            return Ok(None);
        };
        let id = info.id();
        let failed = |source| DatapathError::Running {
            id,
            source: Box::new(source),
        };
        let program = match hook {
            AttachPoint::UplinkXdp(_) => {
                let (name, attach) = (program::INGRESS.into(), XdpAttachType::Interface);
                Program::Xdp(Xdp::from_program_info(info, name, attach).map_err(failed)?)
            }
            AttachPoint::UplinkTc(_) | AttachPoint::Gateway(_) => Program::Tc(
                SchedClassifier::from_program_info(info, program::INGRESS_TC.into())
                    .map_err(failed)?,
            ),
        };
        Ok(Some(Self {
            program,
            id,
            linked,
        }))
    }

    /// The kernel's ID of the program.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether the kernel can run the program on a frame of this length.
    ///
    /// XDP requires an Ethernet header, and tc an IPv4 header after it. The maximum
    /// is what fits into a page besides XDP's headroom and the `skb_shared_info`
    /// after a frame; longer frames arrived merged.
    #[must_use]
    pub fn takes(&self, length: usize) -> bool {
        const ETHERNET: usize = 14;
        const IPV4: usize = 20;
        const PIECE: usize = 4096 - 256 - 320;
        let shortest = match self.program {
            Program::Xdp(_) => ETHERNET,
            Program::Tc(_) => ETHERNET + IPV4,
        };
        (shortest..=PIECE).contains(&length)
    }

    /// Runs the program on `frame`, as if it arrived on the interface `ingress`, if
    /// that exists and the kernel allows it: routes depend on it. Writes to maps are
    /// real; the frame is discarded.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the frame.
    pub fn run(&self, frame: &[u8], ingress: u32) -> Result<Ran, DatapathError> {
        const TC_NEXT: u32 = u32::MAX;
        let context = self.context(frame, ingress);
        let (result, frame) = match &self.program {
            Program::Xdp(program) => self.test(program, frame, &context),
            Program::Tc(program) => self.test(program, frame, &context),
        }?;
        let answer = match (&self.program, result.return_value) {
            (Program::Xdp(_), 1) | (Program::Tc(_), 2) => Answer::Drop,
            (Program::Xdp(_), 2) | (Program::Tc(_), TC_NEXT) => Answer::Pass,
            (Program::Xdp(_), 3) => Answer::Transmit,
            (Program::Xdp(_), 4) | (Program::Tc(_), 7) => Answer::Redirect,
            (_, other) => Answer::Other(other),
        };
        Ok(Ran { answer, frame })
    }

    /// The beginning of the kernel's `struct xdp_md` or `__sk_buff`, with the
    /// interface.
    fn context(&self, frame: &[u8], ingress: u32) -> Vec<u8> {
        const SKB_IFINDEX: usize = 10;
        let words = match self.program {
            // The frame is linear.
            Program::Xdp(_) => vec![0, frame.len() as u32, 0, ingress],
            Program::Tc(_) => {
                let mut words = vec![0; SKB_IFINDEX];
                words.push(ingress);
                words
            }
        };
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn test<P>(
        &self,
        program: &P,
        frame: &[u8],
        context: &[u8],
    ) -> Result<(TestRunResult, Vec<u8>), DatapathError>
    where
        P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
    {
        let mut out = vec![0; frame.len()];
        let mut test = |ctx_in| {
            program.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in,
                ..TestRunOptions::default()
            })
        };
        // Interfaces without native XDP cannot be given, nor any interface before
        // Linux 5.15. If refused, the program has not run.
        let result = test(Some(context))
            .or_else(|_| test(None))
            .map_err(|source| DatapathError::Running {
                id: self.id,
                source: Box::new(source),
            })?;
        out.truncate(result.data_size_out as usize);
        Ok((result, out))
    }
}

/// The link's program; none if its interface was removed.
fn linked_to(link: &FdLink) -> Result<Option<ProgramInfo>, DatapathError> {
    let id = link
        .info()
        .map_err(|error| DatapathError::Link(Box::new(error)))?
        .program_id();
    Ok(loaded(|program| program.id() == id))
}

/// The newest program called `name` that uses the maps under `root`.
fn named(root: &Path, name: &str) -> Result<Option<ProgramInfo>, DatapathError> {
    let own = maps::id(root, map::ALLOCATIONS)?;
    Ok(loaded(|program| {
        program.name_as_str() == Some(name)
            && matches!(program.map_ids(), Ok(Some(maps)) if maps.contains(&own))
    }))
}

fn loaded(wanted: impl Fn(&ProgramInfo) -> bool) -> Option<ProgramInfo> {
    loaded_programs()
        // A program may be unloaded meanwhile.
        .flatten()
        .filter(|program| wanted(program))
        .max_by_key(ProgramInfo::id)
}
