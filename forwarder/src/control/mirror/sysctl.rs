//! Reads settings from /proc/sys that netlink does not report. The files show the network namespace
//! of the thread that opens them, which must be the one of the sockets.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{DevSysctls, Family};
use crate::control::process::limits;
use crate::tables::Sysctls;
use crate::wire::HashFields;

/// Maximum number of files kept open: the settings of the namespace and of some 20 interfaces.
/// Others, and all when the process is short of descriptors, are opened each time.
const KEPT_MAX: usize = 192;
/// How often the number of spare descriptors is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum length of a value in octets; the longest is a bitmap.
const VALUE_MAX: usize = 1024;

/// Files below /proc/sys/net, kept open: opening a file takes ten times as long as reading it.
#[derive(Debug, Default)]
pub struct Files {
    kept: RefCell<BTreeMap<String, File>>,
    kept_max: usize,
    check_due: Option<Instant>,
    has_failed: Cell<bool>,
}

impl Files {
    /// Call before files are read again: closes them when the process has no descriptors to spare.
    pub fn begin(&mut self, now: Instant) {
        self.has_failed.set(false);
        if self.check_due.is_some_and(|due| now < due) {
            return;
        }
        self.check_due = Some(now + CHECK_INTERVAL);
        self.kept_max = limits::descriptors_to_spare(self.kept.get_mut().len()).min(KEPT_MAX);
        self.limit();
    }

    fn limit(&mut self) {
        let kept = self.kept.get_mut();
        if kept.len() > self.kept_max {
            kept.clear();
        }
    }

    /// Whether a file that may exist could not be opened since [`Files::begin`]; then the values
    /// read are not reliable.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Closes the files of all interfaces except those in `names`.
    pub fn keep_only(&mut self, names: &BTreeSet<&str>) {
        self.kept.get_mut().retain(|path, _| {
            let mut parts = path.split('/').skip(1);
            let name = parts.next().filter(|part| *part == "conf").and_then(|_| parts.next());
            name.is_none_or(|name| name == "all" || names.contains(name))
        });
    }

    /// Reads one setting; `None`: the file does not exist, or does not contain a number.
    fn read<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.trim().parse().ok()
    }

    fn text(&self, path: &str) -> Option<String> {
        let mut kept = self.kept.borrow_mut();
        if let Some(file) = kept.get(path) {
            if let Ok(text) = contents(file) {
                return Some(text);
            }
            // The interface is gone; there may be another one with its name.
            kept.remove(path);
        }
        let opened = File::open(format!("/proc/sys/net/{path}"));
        let (file, text) = match opened.and_then(|file| Ok((contents(&file)?, file))) {
            Ok((text, file)) => (file, text),
            Err(error) => {
                let is_known = matches!(error.kind(), NotFound | PermissionDenied);
                self.has_failed.set(self.has_failed() || !is_known);
                return None;
            }
        };
        if kept.len() < self.kept_max {
            kept.insert(path.to_owned(), file);
        }
        Some(text)
    }
}

fn contents(file: &File) -> io::Result<String> {
    let mut text = [0; VALUE_MAX];
    let len = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

/// The bits of a list such as `0-1,3-127`, the kernel's format of bitmaps; bits above 127 are
/// ignored.
fn bits_below_128(list: &str) -> u128 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?))
    };
    let bits =
        list.trim().split(',').filter_map(range).flat_map(|(first, last)| first..=last.min(127));
    bits.fold(0, |mask, bit| mask | 1 << bit.min(127))
}

/// Reads the settings of the namespace; those that the kernel does not have keep their defaults. What is no file is
/// taken from `others`.
pub fn read_all(files: &Files, others: &Sysctls) -> Sysctls {
    let default = Sysctls::default();
    let ratemask = files.text("ipv6/icmp/ratemask");
    let number = |path: &str, default: u32| files.read(path).unwrap_or(default);
    let octet = |path: &str, default: u8| files.read(path).unwrap_or(default);
    let switch =
        |path: &str, default: bool| files.read::<u32>(path).map_or(default, |value| value != 0);
    let fields = |family: &str, default: HashFields| {
        HashFields(number(&format!("{family}/fib_multipath_hash_fields"), default.0))
    };
    Sysctls {
        ip_default_ttl: octet("ipv4/ip_default_ttl", default.ip_default_ttl),
        hop_limit: octet("ipv6/conf/all/hop_limit", default.hop_limit),
        // IP6_AUTO_FLOW_LABEL_OPTOUT and _FORCED.
        auto_flowlabels: matches!(octet("ipv6/auto_flowlabels", 1), 1 | 3),
        flowlabel_state_ranges: switch(
            "ipv6/flowlabel_state_ranges",
            default.flowlabel_state_ranges,
        ),
        fwmark_reflect: ["ipv4", "ipv6"]
            .map(|family| switch(&format!("{family}/fwmark_reflect"), false)),
        icmp_errors_extended: switch("ipv4/icmp_errors_extension_mask", false),
        icmp6_errors_extended: switch("ipv6/icmp/errors_extension_mask", false),
        icmp_ratelimit_ms: number("ipv4/icmp_ratelimit", default.icmp_ratelimit_ms),
        icmp_ratemask: number("ipv4/icmp_ratemask", default.icmp_ratemask),
        icmp_msgs_per_sec: number("ipv4/icmp_msgs_per_sec", default.icmp_msgs_per_sec),
        icmp_msgs_burst: number("ipv4/icmp_msgs_burst", default.icmp_msgs_burst),
        icmp_errors_use_inbound_ifaddr: switch(
            "ipv4/icmp_errors_use_inbound_ifaddr",
            default.icmp_errors_use_inbound_ifaddr,
        ),
        icmp6_ratelimit_ms: number("ipv6/icmp/ratelimit", default.icmp6_ratelimit_ms),
        icmp6_ratemask: ratemask.map_or(default.icmp6_ratemask, |list| bits_below_128(&list)),
        multipath_hash_policy4: octet(
            "ipv4/fib_multipath_hash_policy",
            default.multipath_hash_policy4,
        ),
        multipath_hash_policy6: octet(
            "ipv6/fib_multipath_hash_policy",
            default.multipath_hash_policy6,
        ),
        multipath_hash_fields4: fields("ipv4", default.multipath_hash_fields4),
        multipath_hash_fields6: fields("ipv6", default.multipath_hash_fields6),
        multipath_use_neigh: switch("ipv4/fib_multipath_use_neigh", default.multipath_use_neigh),
        ip_forward_update_priority: switch(
            "ipv4/ip_forward_update_priority",
            default.ip_forward_update_priority,
        ),
        ip_forward_use_pmtu: switch("ipv4/ip_forward_use_pmtu", default.ip_forward_use_pmtu),
        max_hbh_opts_number: files
            .read("ipv6/max_hbh_opts_number")
            .unwrap_or(default.max_hbh_opts_number),
        max_hbh_length: files.read("ipv6/max_hbh_length").unwrap_or(default.max_hbh_length),
        custom_local_routes: others.custom_local_routes,
        addr_labels: Arc::clone(&others.addr_labels),
    }
}

/// Reads the settings of one interface; `name` may be "all".
pub fn read_dev(files: &Files, name: &str) -> DevSysctls {
    // A name is never a path: the kernel rejects '/' and "..".
    let v4 = |key: &str| files.read::<i32>(&format!("ipv4/conf/{name}/{key}")).unwrap_or(0) != 0;
    let v6 = |key: &str| files.read::<i32>(&format!("ipv6/conf/{name}/{key}")).unwrap_or(0);
    DevSysctls {
        accept_source_route: v4("accept_source_route"),
        send_redirects: v4("send_redirects"),
        route_localnet: v4("route_localnet"),
        accept_local: v4("accept_local"),
        shared_media: v4("shared_media"),
        accept_redirects: v4("accept_redirects"),
        disable_xfrm: v4("disable_xfrm"),
        disable_policy4: v4("disable_policy"),
        disable_policy6: v6("disable_policy") != 0,
        disable_ipv6: files
            .read::<i32>(&format!("ipv6/conf/{name}/disable_ipv6"))
            .is_none_or(|value| value != 0),
        force_forwarding: files
            .read::<i32>(&format!("ipv6/conf/{name}/force_forwarding"))
            .is_some_and(|value| value != 0),
        mtu6: files.read(&format!("ipv6/conf/{name}/mtu")).unwrap_or(0),
        hop_limit: files.read(&format!("ipv6/conf/{name}/hop_limit")).unwrap_or(0),
        use_oif_addrs_only: v6("use_oif_addrs_only") != 0,
        prefers_temporary: v6("use_tempaddr") >= 2,
        use_optimistic: v6("use_optimistic") != 0,
    }
}

/// Reads the settings of one interface without keeping files; `None`: they could not be read but
/// may exist.
pub fn read_dev_once(name: &str) -> Option<DevSysctls> {
    let files = Files::default();
    let own = read_dev(&files, name);
    (!files.has_failed()).then_some(own)
}

/// For how long the kernel tries to resolve a neighbour on an interface (`neigh_max_probes`): a product of its settings.
/// `None`: they cannot be read.
pub fn read_neigh_tried(family: Family, name: &str) -> Option<Duration> {
    let files = Files::default();
    let directory = match family {
        Family::V4 => "ipv4/neigh",
        Family::V6 => "ipv6/neigh",
    };
    let read = |key: &str| files.read::<u64>(&format!("{directory}/{name}/{key}"));
    let probes = read("mcast_solicit")?.saturating_add(read("app_solicit")?);
    Some(Duration::from_millis(read("retrans_time_ms")?.saturating_mul(probes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_kept_open_return_current_values() {
        let mut files = Files::default();
        files.begin(Instant::now());
        assert_eq!(read_dev(&files, "lo"), read_dev(&Files::default(), "lo"));
        // A file that cannot be read any more, such as one of a removed interface, is opened again.
        let path = "ipv4/conf/lo/accept_local";
        assert!(files.kept.borrow().contains_key(path));
        files.kept.borrow_mut().insert(path.to_owned(), File::open("/proc").expect("opens"));
        assert!(files.read::<u32>(path).is_some());
        assert_eq!(files.read::<u32>("ipv4/conf/nosuch0/accept_local"), None);
        let others = Sysctls::default();
        let all = read_all(&files, &others);
        assert_eq!(all, read_all(&Files::default(), &others));
        files.keep_only(&BTreeSet::new());
        assert!(files.kept.borrow().keys().all(|path| !path.contains("/lo/")));
        assert!(files.kept.borrow().contains_key("ipv4/ip_default_ttl"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_does_not_count_as_missing() {
        let mut files = Files::default();
        assert_eq!(files.read::<u32>("ipv4/conf/nosuch0/accept_local"), None);
        assert!(!files.has_failed(), "it does not exist");
        // ENAMETOOLONG stands in for ENOMEM and EMFILE.
        assert_eq!(files.read::<u32>(&"x/".repeat(3000)), None);
        assert!(files.has_failed());
        files.begin(Instant::now());
        assert!(!files.has_failed());
    }

    #[test]
    fn files_are_closed_when_descriptors_are_scarce() {
        let mut files = Files::default();
        let now = Instant::now();
        files.begin(now);
        assert!(files.kept_max > 0, "{}", limits::descriptors_to_spare(0));
        read_dev(&files, "lo");
        let kept = files.kept.borrow().len();
        assert!(kept > 0);
        // As if other code had opened descriptors since.
        (files.kept_max, files.check_due) = (kept - 1, Some(now + CHECK_INTERVAL));
        files.limit();
        assert!(files.kept.borrow().is_empty());
        files.kept_max = 0;
        read_dev(&files, "lo");
        assert!(files.kept.borrow().is_empty());
    }

    #[test]
    fn bitmaps_are_parsed_in_the_kernels_format() {
        assert_eq!(bits_below_128("0-1,3-127\n"), !(1 << 2));
        assert_eq!(bits_below_128("\n"), 0);
        assert_eq!(bits_below_128("3"), 8);
        assert_eq!(bits_below_128("127-255,2"), 1 << 127 | 4);
        assert_eq!(bits_below_128("128-255"), 0);
        assert_eq!(bits_below_128("x,1-"), 0);
    }
}
