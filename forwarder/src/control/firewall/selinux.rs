//! Whether SELinux checks forwarded packets.
//!
//! Its functions are always registered at the netfilter hooks (`selinux_ip_forward`,
//! `selinux_ip_postroute`) and let forwarded packets pass unless
//! - a policy is loaded and enforced, and has the capability `network_peer_controls`;
//! - and it has the capability `always_check_network`, or peers are labelled: NetLabel has a label
//!   for unlabelled packets (unlbl) or a CIPSO or CALIPSO domain of interpretation; or SECMARK or
//!   labelled SAs are in use (`selinux_secmark_enabled`, `selinux_xfrm_enabled`).
//!
//! Left out: SECMARK and labelled SAs. The kernel counts both for the whole machine: an unused
//! nftables object of type secmark in any network namespace is enough. Only rules and policies of
//! this namespace that use them are found, as filters of their own.
//!
//! The policy state is read from selinuxfs, the labels from NetLabel, which answers in the initial
//! network namespace only: from another one a thread enters it to open the socket, which takes
//! CAP_SYS_ADMIN and access to the initial process in `/proc`. If it cannot be shown that SELinux
//! checks nothing, it counts as a filter.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::sched::{CloneFlags, setns};

use crate::control::netlink::message::{Message, Request};
use crate::control::netlink::query::NlSock;

/// NETLBL_PROTO_VERSION.
const NETLABEL_VERSION: u8 = 3;
/// Requests for the labels of peers, by family: NLBL_UNLABEL_C_STATICLIST and
/// NLBL_UNLABEL_C_STATICLISTDEF, NLBL_CIPSOV4_C_LISTALL, NLBL_CALIPSO_C_LISTALL.
const LABELS: [(&str, &[u8]); 3] =
    [("NLBL_UNLBL", &[5, 8]), ("NLBL_CIPSOv4", &[4]), ("NLBL_CALIPSO", &[4])];

/// Paths and sockets used to read the state.
#[derive(Debug)]
pub struct Selinux {
    /// Mount point of selinuxfs.
    selinuxfs: PathBuf,
    /// File with the security context of this thread.
    context: PathBuf,
    netlabel: Option<NetLabel>,
}

/// The socket for requests to NetLabel.
#[derive(Debug)]
struct NetLabel {
    socket: NlSock,
    /// The socket is in the initial network namespace: there, a missing family does not exist in
    /// the kernel.
    is_first: bool,
}

impl Selinux {
    /// Uses the paths of the running system.
    pub fn new() -> Selinux {
        Selinux {
            selinuxfs: "/sys/fs/selinux".into(),
            context: "/proc/thread-self/attr/current".into(),
            netlabel: None,
        }
    }

    /// Whether SELinux is present, for kernels that do not list its hooks.
    pub fn is_there(&self) -> bool {
        self.selinuxfs.join("enforce").exists() || self.has_policy() == Some(true)
    }

    /// Why it may check forwarded packets; `None` if it does not.
    pub fn may_check(&mut self) -> Option<String> {
        let is_off = |name: &str| read(&self.selinuxfs.join(name)).is_some_and(|text| text == "0");
        if self.has_policy() == Some(false)
            || is_off("enforce")
            || is_off("policy_capabilities/network_peer_controls")
        {
            return None;
        }
        if !is_off("policy_capabilities/always_check_network") {
            let path = self.selinuxfs.join("policy_capabilities/always_check_network");
            return Some(match read(&path) {
                Some(_) => format!("always_check_network is on (see {})", path.display()),
                None => format!("unknown; {} cannot be read", path.display()),
            });
        }
        match self.has_labels() {
            Ok(false) => None,
            Ok(true) => Some("NetLabel labels peers (see netlabelctl)".into()),
            Err(error) => Some(format!("unknown; the labels of NetLabel cannot be read: {error}")),
        }
    }

    /// `None` if unknown. Without a policy a context is a single word; with one it has several
    /// parts.
    fn has_policy(&self) -> Option<bool> {
        read(&self.context)
            .filter(|context| !context.is_empty())
            .map(|context| context.contains(':'))
    }

    /// Whether NetLabel labels peers (`netlbl_enabled`).
    fn has_labels(&mut self) -> io::Result<bool> {
        match &mut self.netlabel {
            Some(netlabel) => netlabel.has_labels(),
            unopened => unopened.insert(NetLabel::open()?).has_labels(),
        }
    }
}

impl NetLabel {
    /// Opens the socket in the initial network namespace, if the process may enter it.
    fn open() -> io::Result<NetLabel> {
        let first = File::open("/proc/1/ns/net");
        if is_first_namespace() || first.is_err() {
            return NetLabel::open_here();
        }
        let there = || {
            setns(first?, CloneFlags::CLONE_NEWNET)?;
            NetLabel::open_here()
        };
        let thread = std::thread::Builder::new().name("fr-netlabel".into()).spawn(there)?;
        match thread.join() {
            Ok(Ok(netlabel)) => Ok(netlabel),
            // The process may not enter it.
            _ => NetLabel::open_here(),
        }
    }

    fn open_here() -> io::Result<NetLabel> {
        Ok(NetLabel { socket: NlSock::open(NETLINK_GENERIC)?, is_first: is_first_namespace() })
    }

    fn has_labels(&mut self) -> io::Result<bool> {
        let mut found = false;
        for (name, commands) in LABELS {
            let family = match self.socket.family(name) {
                // The kernel was built without this family.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && self.is_first => {
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    return Err(io::Error::other("not in this network namespace"));
                }
                family => family?,
            };
            for command in commands {
                let request =
                    |flags| Request::new(family, flags, &[*command, NETLABEL_VERSION, 0, 0]);
                let any = |message: &Message<'_>| (message.kind == family).then_some(());
                found |= !self.socket.dump_by(request, any)?.is_empty();
            }
        }
        Ok(found)
    }
}

/// Whether the calling thread is in the initial network namespace: others lack some sysctls.
fn is_first_namespace() -> bool {
    Path::new("/proc/sys/net/core/netdev_max_backlog").exists()
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_matches(['\0', '\n', ' ']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Uses the given selinuxfs files and context.
    fn selinux(dir: &Path, files: &[(&str, &str)], context: Option<&str>) -> Selinux {
        let _ = fs::remove_dir_all(dir.join("policy_capabilities"));
        let _ = fs::remove_file(dir.join("enforce"));
        fs::create_dir(dir.join("policy_capabilities")).expect("a directory");
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("writes");
        }
        let path = dir.join("context");
        let _ = fs::remove_file(&path);
        if let Some(context) = context {
            fs::write(&path, context).expect("writes");
        }
        Selinux { selinuxfs: dir.to_owned(), context: path, netlabel: None }
    }

    #[test]
    fn it_counts_as_a_filter_unless_shown_to_be_off() {
        let dir = tempfile::tempdir().expect("a directory");
        let policy = Some("system_u:system_r:kernel_t:s0\0");
        let always = "policy_capabilities/always_check_network";
        let peers = "policy_capabilities/network_peer_controls";
        let why = |files: &[(&str, &str)], context| selinux(dir.path(), files, context).may_check();

        let on = why(&[("enforce", "1"), (peers, "1"), (always, "1")], policy);
        assert!(on.expect("a filter").starts_with("always_check_network is on"));
        let unread = why(&[("enforce", "1"), (peers, "1")], policy).expect("a filter");
        assert!(unread.starts_with("unknown; ") && unread.contains(always), "{unread}");
        assert!(why(&[], None).is_some(), "nothing can be read");

        assert_eq!(why(&[("enforce", "0"), (always, "1")], policy), None, "permissive");
        assert_eq!(why(&[("enforce", "1"), (peers, "0"), (always, "1")], policy), None);
        assert_eq!(why(&[], Some("kernel\0")), None, "no policy is loaded");
        // The kernel of the test machine has no labels, or cannot be queried here.
        let off = why(&[("enforce", "1"), (peers, "1"), (always, "0")], policy);
        assert!(off.is_none_or(|why| why.contains("NetLabel")));
    }

    #[test]
    fn netlabel_families_missing_in_another_namespace_are_unknown() {
        let mut netlabel = NetLabel::open().expect("opens");
        netlabel.is_first = true;
        let visible = netlabel.has_labels();
        netlabel.is_first = false;
        let hidden = netlabel.has_labels();
        // Either the families exist and give the same replies, or their absence is an error.
        assert!(hidden.is_err() || hidden.ok() == visible.ok());
    }

    #[test]
    #[ignore = "needs root: run by scripts/test"]
    fn root_netlabel_is_queried_in_the_initial_namespace_from_any() {
        let inside = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
            assert!(!is_first_namespace());
            let netlabel = NetLabel::open().expect("opens");
            assert!(!is_first_namespace(), "the calling thread stays where it is");
            netlabel
        });
        let netlabel = inside.join().expect("does not panic");
        // In a container, the process with id 1 is not in the initial namespace either.
        let first = Path::new("/proc/1/ns/net").read_link().ok();
        let own = Path::new("/proc/thread-self/ns/net").read_link().ok();
        assert_eq!(netlabel.is_first, is_first_namespace() && first == own);
    }

    #[test]
    fn it_is_present_when_a_policy_is_loaded() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!selinux(dir.path(), &[], None).is_there());
        assert!(!selinux(dir.path(), &[], Some("unconfined\n")).is_there());
        assert!(selinux(dir.path(), &[], Some("u:r:t:s0\0")).is_there());
        assert!(selinux(dir.path(), &[("enforce", "1")], None).is_there());
    }
}
