//! Netfilter hooks of forwarded packets: which functions any module or program registered there.
//!
//! nfnetlink_hook lists them (Linux 5.14, CONFIG_NETFILTER_NETLINK_HOOK); on a kernel without it a
//! BPF iterator does ([`HookIter`], CAP_BPF and CAP_PERFMON). If neither is available, the known
//! users of the hooks are checked: nftables chains (see [`super::nftables`]), BPF links,
//! iptables-legacy, IPVS. Left out: hooks of bridges, which process frames that are not routed, and
//! of packets to and from the router itself, which Ferroute leaves to the kernel.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::nftables::Nftables;
use super::selinux::Selinux;
use super::xtables::{Files, Tables};
use super::{
    NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV, be32, family_name, find, hook_name, string,
};
use crate::control::netlink::message::{Attrs, Message, Request};
use crate::control::netlink::query::NlSock;
use crate::io::af_xdp::bpf::{NetfilterLink, netfilter_link, next_link};
use crate::io::af_xdp::hook_iter::{HookFunctions, HookIter};

/// `struct nfgenmsg` in octets.
const NFGEN_HEADER: usize = 4;
/// NFNL_SUBSYS_HOOK << 8 | NFNL_MSG_HOOK_GET.
const HOOK_GET: u16 = 12 << 8;
const NFNLA_HOOK_HOOKNUM: u16 = 1;
const NFNLA_HOOK_PRIORITY: u16 = 2;
const NFNLA_HOOK_DEV: u16 = 3;
const NFNLA_HOOK_FUNCTION_NAME: u16 = 4;
const NFNLA_HOOK_MODULE_NAME: u16 = 5;
const NFNLA_HOOK_CHAIN_INFO: u16 = 6;
const NFNLA_HOOK_INFO_DESC: u16 = 1;
const NFNLA_HOOK_INFO_TYPE: u16 = 2;
const NFNL_HOOK_TYPE_BPF: u32 = 2;
const NFNLA_HOOK_BPF_ID: u16 = 1;

/// NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING: the hooks of forwarded packets.
const FORWARDED: [u32; 3] = [0, 2, 4];
/// NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT: the hooks of packets to and from the router itself, among them IPsec packets.
const LOCAL: [u32; 2] = [1, 3];
/// NF_NETDEV_INGRESS, NF_NETDEV_EGRESS.
const NETDEV: [u32; 2] = [0, 1];

/// Functions that forwarded packets may bypass.
///
/// - Connection tracking and defragmentation change no packet; rules that use them have hooks of
///   their own. Packets to the router itself are still tracked.
/// - `ip_sabotage_in` of br_netfilter is for bridged frames.
/// - AppArmor checks packets that SECMARK rules (which have hooks of their own) marked.
const HARMLESS: [&str; 14] = [
    "ipv4_conntrack_in",
    "ipv6_conntrack_in",
    "ipv4_conntrack_local",
    "ipv6_conntrack_local",
    "ipv4_conntrack_defrag",
    "ipv6_defrag",
    "nf_confirm",
    "ipv4_confirm",
    "ipv6_confirm",
    "ipv4_helper",
    "ipv6_helper",
    "ip_sabotage_in",
    "apparmor_ip_postroute",
    "apparmor_ipv4_postroute",
];
/// Functions of SELinux, which checks forwarded packets in some cases: see [`super::selinux`].
const SELINUX: [&str; 1] = ["selinux_"];
/// Prefixes of functions of chains and flowtables, which [`super::nftables`] describes.
const NFTABLES: [&str; 2] = ["nft_do_chain", "nf_flow_offload"];
/// Functions of NAT, both of nftables and of iptables: registered with the first NAT chain or table
/// at any hook.
const NAT: [&str; 2] = ["nf_nat_ipv4", "nf_nat_ipv6"];
/// Functions and modules of iptables-legacy.
const XTABLES: [&str; 4] = ["ipt_do_table", "ip6t_do_table", "iptable_", "ip6table_"];

/// What is registered at the hooks of forwarded packets, except nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    by: By,
    /// Why SELinux may check forwarded packets; `None` if it does not.
    selinux: Option<String>,
    tables4: Tables,
    tables6: Tables,
    /// The functions that packets to or from the router itself pass; error: why they are not known.
    local: Result<Vec<Hook>, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    /// All registered functions.
    Listing(Vec<Hook>),
    /// Known users of the hooks only.
    Parts { links: BpfLinks, ipvs: bool },
}

/// A function at a hook.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hook {
    family: u8,
    hook: u32,
    /// `None`: the iterator does not report it.
    priority: Option<i32>,
    /// Empty if the kernel does not report names (no CONFIG_KALLSYMS).
    function: String,
    module: String,
    /// Id of the BPF program that it runs.
    program: Option<u32>,
}

/// BPF links at the hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum BpfLinks {
    Listed(Vec<NetfilterLink>),
    /// Not listed, for lack of CAP_SYS_ADMIN.
    Unlisted,
}

/// The source from which the hooks are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// The kernel lists them (nfnetlink_hook).
    Netlink,
    /// A BPF iterator reads the kernel's list.
    Iterator,
    /// Nothing lists them, for this reason: the known users are checked.
    Parts(String),
}

/// Sockets and iterators, kept between readings.
#[derive(Debug)]
pub struct Reader {
    files: Files,
    /// `None`: nfnetlink_hook is not available. It is not requested again, because the kernel would
    /// start modprobe each time.
    listing: Option<NlSock>,
    /// Used without nfnetlink_hook; error: why it is not available either.
    iterator: Result<HookIter, String>,
    /// Highest id of the links that were checked.
    last_link: u32,
    links: Vec<NetfilterLink>,
    selinux: Selinux,
}

impl Reader {
    /// Opens them in the network namespace of this thread.
    ///
    /// # Errors
    /// When a request fails.
    pub fn open() -> io::Result<Reader> {
        let socket = match NlSock::open(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            socket => Some(socket?),
        };
        let mut reader = Reader {
            files: Files::open(),
            listing: socket,
            iterator: Err(String::new()),
            last_link: 0,
            links: Vec::new(),
            selinux: Selinux::new(),
        };
        if let Some(socket) = &mut reader.listing {
            match list(socket, NFPROTO_IPV4, FORWARDED[0], "") {
                Ok(_) => {}
                // The kernel has no such nfnetlink subsystem.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => reader.listing = None,
                Err(error) => return Err(error),
            }
        }
        if reader.listing.is_none() {
            // Optional: not available without privilege or BTF.
            reader.iterator = HookIter::open().map_err(|error| error.to_string());
        }
        Ok(reader)
    }

    /// The source from which the hooks are known.
    pub fn means(&self) -> Means {
        match (&self.listing, &self.iterator) {
            (Some(_), _) => Means::Netlink,
            (None, Ok(_)) => Means::Iterator,
            (None, Err(why)) => Means::Parts(why.clone()),
        }
    }

    /// Reads the hooks. `thorough`: all BPF links are checked, not only new ones, because ids wrap.
    ///
    /// # Errors
    /// When a request fails.
    pub fn read(&mut self, thorough: bool) -> io::Result<Hooks> {
        let (by, local) = match self.listed()? {
            Some(hooks) => {
                let (forwarded, local): (Vec<_>, Vec<_>) =
                    hooks.into_iter().partition(|hook| FORWARDED.contains(&hook.hook));
                (By::Listing(forwarded), Ok(local))
            }
            None => {
                let ipvs = self.files.has_virtual_servers()?;
                let unlisted =
                    "the kernel lists no hooks (CONFIG_NETFILTER_NETLINK_HOOK)".to_owned();
                (By::Parts { links: self.links(thorough)?, ipvs }, Err(unlisted))
            }
        };
        let is_there = match &by {
            By::Listing(hooks) => hooks.iter().any(|hook| matches!(hook.kind(), Kind::Selinux)),
            By::Parts { .. } => self.selinux.is_there(),
        };
        let selinux = if is_there { self.selinux.may_check() } else { None };
        let (tables4, tables6) = (self.files.tables4()?, self.files.tables6()?);
        Ok(Hooks { by, selinux, tables4, tables6, local })
    }

    /// All functions at the hooks of the IP families. `None`: nothing lists them.
    fn listed(&mut self) -> io::Result<Option<Vec<Hook>>> {
        let Some(socket) = &mut self.listing else {
            let Ok(iterator) = &self.iterator else { return Ok(None) };
            return Ok(Some(iterator.read()?.into_iter().flat_map(of_functions).collect()));
        };
        let mut hooks = Vec::new();
        for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
            for hook in FORWARDED.into_iter().chain(LOCAL) {
                hooks.extend(list(socket, family, hook, "")?);
            }
        }
        Ok(Some(hooks))
    }

    /// Functions at the ingress and egress hooks of an interface, if the kernel lists hooks;
    /// otherwise they are unknown. (nftables is the only known user of these hooks.)
    ///
    /// # Errors
    /// When a request fails.
    pub fn on_device(&mut self, name: &str) -> io::Result<Vec<Hook>> {
        let Some(socket) = &mut self.listing else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for hook in NETDEV {
            match list(socket, NFPROTO_NETDEV, hook, name) {
                // The interface is gone, or the kernel has no such hook.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENODEV | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)
                    ) => {}
                hooks => found.extend(hooks?),
            }
        }
        Ok(found)
    }

    /// Links at hooks of forwarded packets. Takes one system call if there are none and no new
    /// ones.
    fn links(&mut self, thorough: bool) -> io::Result<BpfLinks> {
        if thorough || !self.links.is_empty() {
            self.last_link = 0;
            self.links.clear();
        }
        let (mut last, mut all_settled) = (self.last_link, true);
        loop {
            match next_link(last) {
                Ok(Some(id)) => {
                    match netfilter_link(id) {
                        // It has an id but is not attached yet: check it again next time.
                        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                            all_settled = false;
                        }
                        link => {
                            let link = link?.filter(|link| FORWARDED.contains(&link.hook));
                            self.links.extend(link);
                        }
                    }
                    last = id;
                    if all_settled {
                        self.last_link = id;
                    }
                }
                Ok(None) => return Ok(BpfLinks::Listed(self.links.clone())),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    return Ok(BpfLinks::Unlisted);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Hooks {
    /// A line for each function that would be bypassed. `nftables`: its chains explain its hooks
    /// and those of NAT.
    pub fn bypassed(&self, nftables: &Nftables) -> Vec<String> {
        let mut found = named("iptables", &self.tables4);
        found.extend(named("ip6tables", &self.tables6));
        found.extend(self.selinux.iter().map(|why| format!("SELinux: {why}")));
        match &self.by {
            By::Listing(hooks) => {
                let listed = hooks.iter().filter(|hook| !self.is_explained(hook, nftables));
                found.extend(listed.map(Hook::describe));
            }
            By::Parts { links, ipvs } => {
                for (program, tables) in [("iptables", &self.tables4), ("ip6tables", &self.tables6)]
                {
                    if *tables == Tables::Unreadable {
                        found.push(perhaps(program));
                    }
                }
                match links {
                    BpfLinks::Listed(links) => found.extend(links.iter().map(describe_link)),
                    BpfLinks::Unlisted => found.push(
                        "BPF netfilter programs: unknown; listing them takes CAP_SYS_ADMIN, or a \
                         kernel with CONFIG_NETFILTER_NETLINK_HOOK, or one with \
                         CONFIG_DEBUG_INFO_BTF and CAP_BPF and CAP_PERFMON"
                            .into(),
                    ),
                }
                if *ipvs {
                    found.push("IPVS: virtual servers (see ipvsadm -L)".into());
                }
            }
        }
        found
    }

    /// A function other than those of nftables that packets to or from the router itself pass, or why it is not known
    /// whether there is one. It sees IPsec packets.
    pub fn local(&self, nftables: &Nftables) -> Option<String> {
        let is_unknown = |hook: &&Hook| {
            matches!(hook.kind(), Kind::Selinux) || !self.is_explained(hook, nftables)
        };
        match &self.local {
            Ok(hooks) => hooks.iter().find(is_unknown).map(Hook::describe),
            Err(unlisted) => Some(unlisted.clone()),
        }
    }

    /// Whether a hook may be bypassed, or another line describes it.
    fn is_explained(&self, hook: &Hook, nftables: &Nftables) -> bool {
        let tables = if hook.family == NFPROTO_IPV4 { &self.tables4 } else { &self.tables6 };
        let named = matches!(tables, Tables::Named(names) if !names.is_empty());
        match hook.kind() {
            Kind::Harmless => true,
            // Has its own line if it may check packets.
            Kind::Selinux => true,
            Kind::Nftables => nftables.is_at(hook.family, hook.hook, ""),
            Kind::Nat => nftables.has_nat(hook.family) && *tables != Tables::Unreadable || named,
            Kind::Xtables => named,
            Kind::Other => false,
        }
    }
}

/// A line for each table.
fn named(program: &str, tables: &Tables) -> Vec<String> {
    let Tables::Named(names) = tables else { return Vec::new() };
    let line = |name| format!("{program}-legacy: table {name} (see {program}-legacy-save)");
    names.iter().map(line).collect()
}

fn perhaps(program: &str) -> String {
    let file = if program == "iptables" { "ip_tables_names" } else { "ip6_tables_names" };
    format!(
        "{program}-legacy: unknown; only root can read /proc/net/{file}, and the kernel lists no \
         hooks (CONFIG_NETFILTER_NETLINK_HOOK)"
    )
}

/// The owner of a hook.
enum Kind {
    Harmless,
    Selinux,
    Nftables,
    Nat,
    Xtables,
    Other,
}

impl Hook {
    fn kind(&self) -> Kind {
        let begins = |names: &[&str]| {
            names
                .iter()
                .any(|name| self.function.starts_with(name) || self.module.starts_with(name))
        };
        match self.function.as_str() {
            _ if self.program.is_some() => Kind::Other,
            function if HARMLESS.contains(&function) => Kind::Harmless,
            _ if begins(&SELINUX) => Kind::Selinux,
            _ if begins(&NFTABLES) => Kind::Nftables,
            _ if begins(&NAT) => Kind::Nat,
            _ if begins(&XTABLES) => Kind::Xtables,
            _ => Kind::Other,
        }
    }

    fn describe(&self) -> String {
        let Hook { function, module, priority, .. } = self;
        let at = format!(
            "{}, hook {}{}",
            family_name(self.family).unwrap_or("unknown family"),
            hook_name(self.family, self.hook),
            priority.map_or(String::new(), |priority| format!(", priority {priority}"))
        );
        let legacy =
            if self.family == NFPROTO_IPV4 { "iptables-legacy" } else { "ip6tables-legacy" };
        match (self.program, self.kind()) {
            (Some(id), _) => format!("BPF netfilter program {id} ({at}; see bpftool link)"),
            (None, Kind::Xtables) => format!("{legacy}: a table ({at}; see {legacy}-save)"),
            (None, Kind::Nat) => format!("NAT ({at}; see {legacy}-save -t nat)"),
            _ if function == "nf_hook_run_bpf" => {
                format!("BPF netfilter program ({at}; see bpftool link)")
            }
            _ => {
                let of = if module.is_empty() { String::new() } else { format!(" of {module}") };
                let name = if function.is_empty() { "without a name" } else { function };
                format!("netfilter: function {name}{of} ({at})")
            }
        }
    }
}

fn describe_link(link: &NetfilterLink) -> String {
    let family = u8::try_from(link.family).unwrap_or_default();
    format!(
        "BPF netfilter program {} ({}, hook {}, priority {}, link {}, of this network namespace or \
         another; see bpftool link)",
        link.program,
        family_name(family).unwrap_or("unknown family"),
        hook_name(family, link.hook),
        link.priority,
        link.id
    )
}

/// A line for each function at an interface, see [`Reader::on_device`], that is neither harmless
/// nor that of an nftables chain or flowtable listed there.
pub fn on_device<'a>(
    name: &'a str,
    hooks: &'a [Hook],
    nftables: &'a Nftables,
) -> impl Iterator<Item = String> + 'a {
    let is_explained = |hook: &Hook| match hook.kind() {
        Kind::Harmless => true,
        Kind::Nftables => nftables.is_at(hook.family, hook.hook, name),
        _ => false,
    };
    let unknown = hooks.iter().filter(move |hook| !is_explained(hook));
    unknown.map(move |hook| format!("{} on {name}", hook.describe()))
}

/// Converts the iterator's entry for one hook.
fn of_functions(at: HookFunctions) -> impl Iterator<Item = Hook> {
    let family = if at.ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
    at.functions.into_iter().map(move |name| {
        let (function, module) = name.split_once(' ').unwrap_or((&name, ""));
        Hook {
            family,
            hook: at.hook,
            priority: None,
            function: function.to_owned(),
            module: module.trim_matches(['[', ']']).to_owned(),
            program: None,
        }
    })
}

/// Lists the functions registered at one hook.
fn list(socket: &mut NlSock, family: u8, hook: u32, device: &str) -> io::Result<Vec<Hook>> {
    let request = |flags| {
        let request = Request::new(HOOK_GET, flags, &[family, 0, 0, 0])
            .attr(NFNLA_HOOK_HOOKNUM, &hook.to_be_bytes());
        match device {
            "" => request,
            device => request.attr(NFNLA_HOOK_DEV, format!("{device}\0").as_bytes()),
        }
    };
    socket.dump_by(request, |message| Some(parse_hook(family, hook, message)))
}

/// Fields that cannot be parsed stay empty: the hook counts nevertheless.
fn parse_hook(family: u8, hook: u32, message: &Message<'_>) -> Hook {
    let attrs = message.attrs(NFGEN_HEADER);
    let text = |kind| find(attrs, kind).map(string).unwrap_or_default();
    let info = Attrs(find(attrs, NFNLA_HOOK_CHAIN_INFO).unwrap_or_default());
    let is_bpf = find(info, NFNLA_HOOK_INFO_TYPE).and_then(be32) == Some(NFNL_HOOK_TYPE_BPF);
    let described = Attrs(find(info, NFNLA_HOOK_INFO_DESC).unwrap_or_default());
    Hook {
        family,
        hook,
        priority: find(attrs, NFNLA_HOOK_PRIORITY).and_then(be32).map(|priority| priority as i32),
        function: text(NFNLA_HOOK_FUNCTION_NAME),
        module: text(NFNLA_HOOK_MODULE_NAME),
        program: find(described, NFNLA_HOOK_BPF_ID).and_then(be32).filter(|_| is_bpf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(function: &str, module: &str) -> Hook {
        Hook {
            family: NFPROTO_IPV4,
            hook: 2,
            priority: Some(0),
            function: function.into(),
            module: module.into(),
            ..Hook::default()
        }
    }

    fn lines(hooks: &[Hook], tables4: Tables) -> Vec<String> {
        let by = By::Listing(hooks.to_vec());
        Hooks { by, selinux: None, tables4, tables6: Tables::Named(vec![]), local: Ok(vec![]) }
            .bypassed(&Nftables::default())
    }

    #[test]
    fn a_function_that_is_not_known_to_be_harmless_is_a_filter() {
        let none = || Tables::Named(vec![]);
        let harmless =
            [hook("ipv4_conntrack_in", "nf_conntrack"), hook("apparmor_ip_postroute", "")];
        assert!(lines(&harmless, none()).is_empty());
        // No chain is listed.
        assert_eq!(
            lines(&[hook("nft_do_chain_ipv4", "nf_tables")], none()),
            ["netfilter: function nft_do_chain_ipv4 of nf_tables (ip, hook forward, priority 0)"]
        );
        assert_eq!(
            lines(&[hook("ip_vs_forward_icmp", "ip_vs")], none()),
            ["netfilter: function ip_vs_forward_icmp of ip_vs (ip, hook forward, priority 0)"]
        );
        assert_eq!(
            lines(&[hook("", "")], none()),
            ["netfilter: function without a name (ip, hook forward, priority 0)"]
        );
        let bpf = Hook { program: Some(7), ..hook("nf_hook_run_bpf", "") };
        assert_eq!(
            lines(&[bpf], none()),
            ["BPF netfilter program 7 (ip, hook forward, priority 0; see bpftool link)"]
        );
    }

    #[test]
    fn a_function_of_nftables_on_an_interface_without_a_chain_is_a_filter() {
        let hooks =
            [Hook { family: NFPROTO_NETDEV, hook: 0, ..hook("nft_do_chain_netdev", "nf_tables") }];
        assert_eq!(
            on_device("eth0", &hooks, &Nftables::default()).collect::<Vec<_>>(),
            ["netfilter: function nft_do_chain_netdev of nf_tables (netdev, hook ingress, \
              priority 0) on eth0"]
        );
    }

    #[test]
    fn selinux_has_a_line_only_if_it_may_check_packets() {
        let hooks = |selinux| Hooks {
            by: By::Listing(vec![hook("selinux_ip_forward", ""), hook("selinux_ip_postroute", "")]),
            selinux,
            tables4: Tables::Named(vec![]),
            tables6: Tables::Named(vec![]),
            local: Ok(vec![]),
        };
        assert!(hooks(None).bypassed(&Nftables::default()).is_empty());
        assert_eq!(hooks(Some("why".into())).bypassed(&Nftables::default()), ["SELinux: why"]);
    }

    #[test]
    fn tables_are_found_by_their_hooks_if_their_names_cannot_be_read() {
        let filter = [hook("ipt_do_table", "ip_tables")];
        let named = Tables::Named(vec!["filter".into()]);
        assert_eq!(
            lines(&filter, named),
            ["iptables-legacy: table filter (see iptables-legacy-save)"]
        );
        let by_hook = lines(&filter, Tables::Unreadable);
        assert!(
            by_hook[0].starts_with("iptables-legacy: a table (ip, hook forward"),
            "{by_hook:?}"
        );
        assert!(lines(&[], Tables::Unreadable).is_empty());
        let nat = lines(&[hook("nf_nat_ipv4_out", "nf_nat")], Tables::Unreadable);
        assert!(nat[0].starts_with("NAT ("), "{nat:?}");
    }

    #[test]
    fn without_a_listing_what_cannot_be_read_is_reported_as_unknown() {
        let hooks = |links, tables4| Hooks {
            by: By::Parts { links, ipvs: false },
            selinux: None,
            tables4,
            tables6: Tables::Named(vec![]),
            local: Ok(vec![]),
        };
        let none = Nftables::default();
        let listed = BpfLinks::Listed(vec![]);
        assert!(hooks(listed.clone(), Tables::Named(vec![])).bypassed(&none).is_empty());
        let unread = hooks(listed, Tables::Unreadable).bypassed(&none);
        assert!(unread.len() == 1 && unread[0].contains("ip_tables_names"), "{unread:?}");
        let unlisted = hooks(BpfLinks::Unlisted, Tables::Named(vec![])).bypassed(&none);
        assert!(unlisted.len() == 1 && unlisted[0].contains("CAP_SYS_ADMIN"), "{unlisted:?}");
    }

    #[test]
    fn functions_of_the_iterator_are_hooks_with_their_module() {
        let functions = vec!["ip_vs_in [ip_vs]".into(), "ip6t_do_table".into(), String::new()];
        let hooks: Vec<Hook> =
            of_functions(HookFunctions { ipv6: true, hook: 2, functions }).collect();
        assert_eq!(
            lines(&hooks, Tables::Named(vec![])),
            [
                "netfilter: function ip_vs_in of ip_vs (ip6, hook forward)",
                "ip6tables-legacy: a table (ip6, hook forward; see ip6tables-legacy-save)",
                "netfilter: function without a name (ip6, hook forward)",
            ]
        );
    }

    #[test]
    fn a_hook_is_parsed_and_a_malformed_message_is_a_hook_too() {
        let description =
            Request::new(0, 0, &[]).attr(NFNLA_HOOK_BPF_ID, &9u32.to_be_bytes()).finish(0);
        let info = Request::new(0, 0, &[])
            .attr(0x8000 | NFNLA_HOOK_INFO_DESC, &description[16..])
            .attr(NFNLA_HOOK_INFO_TYPE, &NFNL_HOOK_TYPE_BPF.to_be_bytes())
            .finish(0);
        let message = Request::new(HOOK_GET, 0, &[NFPROTO_IPV4, 0, 0, 0])
            .attr(NFNLA_HOOK_FUNCTION_NAME, b"nf_hook_run_bpf\0")
            .attr(NFNLA_HOOK_PRIORITY, &(-128i32 as u32).to_be_bytes())
            .attr(0x8000 | NFNLA_HOOK_CHAIN_INFO, &info[16..])
            .finish(0);
        let payload = &message[16..];
        let read = |payload| {
            parse_hook(NFPROTO_IPV4, 2, &Message { kind: HOOK_GET, flags: 0, seq: 0, payload })
        };
        let hook = read(payload);
        assert_eq!((hook.program, hook.priority, hook.hook), (Some(9), Some(-128), 2));
        assert_eq!(hook.function, "nf_hook_run_bpf");
        for len in 0..payload.len() {
            assert_eq!(read(&payload[..len]).family, NFPROTO_IPV4);
        }
    }
}
