//! Counts frames that the XDP program redirected to a port and that were not sent, at tracepoints of the kernel
//! ([`xdp_prog::redirect`]): drivers have no counter in common that tells.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, Object, ObjectBuilder};
use xdp_prog::offload::TX_PORTS_MAX;
use xdp_prog::redirect::{self, Failures, WatchSettings};

use super::XdpError;
use super::object::{Aligned, map, with_log};
use crate::io::af_xdp::mapped_words::MappedWords;
use crate::io::af_xdp::{DeviceLayout, netns_id};

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../xdp-prog/redirect.bpf.o"));

/// 32-bit words of a [`Failures`].
const FAILURES: usize = size_of::<Failures>() / 4;

/// The programs at the tracepoints, which are removed when it is dropped.
#[derive(Debug)]
pub struct RedirectFailures {
    /// A program is attached while its link has a descriptor.
    _links: [OwnedFd; 2],
    ports: MapHandle,
    failed: MappedWords,
}

impl RedirectFailures {
    /// Attaches the programs. `tx_ports`: the DEVMAPs of this process.
    ///
    /// # Errors
    /// [`XdpError::RedirectFailures`] if the kernel has no type information (BTF), no BPF programs at tracepoints, or
    /// does not let this process use them.
    pub(super) fn watch(tx_ports: &[MapHandle; 2]) -> Result<RedirectFailures, XdpError> {
        let failed = |why: String| XdpError::RedirectFailures(why);
        let layout = DeviceLayout::of_kernel().map_err(|error| failed(error.to_string()))?;
        let mut ids = [0; 2];
        for (id, map) in ids.iter_mut().zip(tx_ports) {
            *id = map.info().map_err(|error| failed(format!("{error:#}")))?.info.id;
        }
        let settings = WatchSettings {
            cookie: netns_id().map_err(|error| failed(error.to_string()))?,
            tx_ports: ids,
            dev_net: layout.dev_net,
            dev_ifindex: layout.dev_ifindex,
            net_cookie: layout.net_cookie,
            reserved: 0,
        };
        let (object, log) = with_log(|| {
            ObjectBuilder::default().name("ferroute_redir")?.open_memory(&OBJECT.0)?.load()
        });
        let object = object.map_err(|error| failed(format!("{error:#}: {}", log.trim())))?;
        map(&object, redirect::MAP_SETTINGS)?
            .update(&0u32.to_ne_bytes(), &settings.to_bytes(), MapFlags::ANY)
            .map_err(|error| failed(format!("{error:#}")))?;
        let counters = map(&object, redirect::MAP_FAILED)?;
        Ok(RedirectFailures {
            _links: [
                attach(&object, redirect::PROGRAM_REDIRECT_ERR, "xdp_redirect_err")?,
                attach(&object, redirect::PROGRAM_DEVMAP_XMIT, "xdp_devmap_xmit")?,
            ],
            ports: map(&object, redirect::MAP_PORTS)?,
            failed: MappedWords::map(counters.as_fd(), TX_PORTS_MAX * FAILURES)
                .map_err(|error| failed(error.to_string()))?,
        })
    }

    /// A port is an interface from now on, or none.
    ///
    /// # Errors
    /// [`XdpError::Map`].
    pub fn set_port(
        &self,
        port: u16,
        before: Option<u32>,
        now: Option<u32>,
    ) -> Result<(), XdpError> {
        let error = |source| XdpError::map("write", &self.ports, source);
        if let Some(ifindex) = before {
            match self.ports.delete(&ifindex.to_ne_bytes()) {
                Err(gone) if gone.kind() == libbpf_rs::ErrorKind::NotFound => {}
                other => other.map_err(error)?,
            }
        }
        let Some(ifindex) = now else { return Ok(()) };
        let number = u32::from(port).to_ne_bytes();
        self.ports.update(&ifindex.to_ne_bytes(), &number, MapFlags::ANY).map_err(error)
    }

    /// Frames to a port that were not sent, since the start.
    pub fn of_port(&self, port: u16) -> Failures {
        let at = usize::from(port) * FAILURES;
        let word = |at| self.failed.long(at).map_or(0, |word| word.load(Relaxed));
        Failures { refused: word(at), dropped: word(at + 2) }
    }
}

fn attach(object: &Object, name: &'static str, tracepoint: &str) -> Result<OwnedFd, XdpError> {
    let mut programs = object.progs_mut();
    let program = programs.find(|it| it.name() == name).ok_or(XdpError::Incomplete(name))?;
    let (link, log) = with_log(|| program.attach_raw_tracepoint(tracepoint));
    let failed = |error| XdpError::RedirectFailures(format!("{error:#}: {}", log.trim()));
    let link: Link = link.map_err(failed)?;
    link.as_fd().try_clone_to_owned().map_err(XdpError::Descriptors)
}
