//! Xfrm interfaces: which of them are followed; and VTIs, which are not.

use super::links::{RxHandlers, unsupported};
use crate::control::mirror::state::{IFF_UP, LinkState, RouterState, VtiState};
use crate::tables::TunnelTaker;

/// At most so many are followed.
pub const XFRMIS_MAX: usize = 512;
/// The queueing discipline that passes packets on at once, which they have unless another one was added.
const NOQUEUE: &str = "noqueue";

/// Why an xfrm interface is not followed: the kernel has the packets that it receives or sends. `None`: it is followed,
/// or it is down.
pub fn obstacle(
    state: &RouterState,
    link: &LinkState,
    rx_handlers: &RxHandlers<'_>,
) -> Option<String> {
    let Some(xfrmi) = &link.xfrm else { return Some("not known".to_owned()) };
    if xfrmi.collect_md {
        return Some("external (collect metadata)".to_owned());
    }
    if link.link_netnsid.is_some() {
        return Some("its policies and SAs are those of another network namespace".to_owned());
    }
    if let Some(why) = unsupported(state, link, rx_handlers) {
        return Some(why);
    }
    // The kernel routes what was protected by this interface, to which such rules may apply.
    let has_oif_rules = || state.rules4.iter().chain(&*state.rules6).any(|rule| rule.oif.is_some());
    if xfrmi.link != 0 && has_oif_rules() {
        return Some("has a lower interface, and there are rules of routing with oif".to_owned());
    }
    let Some(own) = state.sysctls_dev.get(&link.ifindex) else {
        return Some("its settings are not known yet".to_owned());
    };
    if own.disable_xfrm || state.sysctls_all.disable_xfrm {
        return Some("net.ipv4.conf.*.disable_xfrm".to_owned());
    }
    if link.is_up() && link.qdisc != NOQUEUE {
        return Some(format!("has the queueing discipline {}", link.qdisc));
    }
    match state.xfrmi_filters.get(&link.ifindex) {
        None => Some("what filters its packets is not known yet".to_owned()),
        Some(filters) => (!filters.is_empty()).then(|| filters.clone()),
    }
}

/// What the kernel receives by an interface of tunnels that is not followed.
pub fn taker(link: &LinkState) -> Option<TunnelTaker> {
    if link.flags & IFF_UP == 0 {
        return None;
    }
    match (&link.xfrm, &link.vti) {
        // Of this namespace, or of another one where it does no harm.
        (Some(xfrmi), _) if xfrmi.collect_md => Some(TunnelTaker::External),
        (_, Some(VtiState { local, remote })) => Some(TunnelTaker::Vti {
            local: *local,
            remote: *remote,
            is_ipv6: link.kind.as_deref() == Some("vti6"),
        }),
        _ => None,
    }
}
