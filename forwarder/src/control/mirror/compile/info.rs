//! Compiles a route body to a `FibInfo`: next hops with their ports, dead or alive.

use std::collections::HashMap;

use super::vlans::Devs;
use crate::control::mirror::rib::{
    Expiry, RTN_ANYCAST, RTN_BLACKHOLE, RTN_BROADCAST, RTN_LOCAL, RTN_UNICAST, RTNH_F_DEAD,
    RTNH_F_ONLINK, RouteBody,
};
use crate::control::mirror::state::{Family, NexthopState, RouterState};
use crate::fib::{FibInfo, Nexthop, Nexthops, RouteType};
use crate::stats::PuntReason;

/// RTAX_MTU.
const RTAX_MTU: u16 = 2;
/// RTAX_HOPLIMIT.
const RTAX_HOPLIMIT: u16 = 10;
const RTN_MULTICAST: u8 = 5;
const RTN_UNREACHABLE: u8 = 7;
const RTN_PROHIBIT: u8 = 8;
const RTN_THROW: u8 = 9;

/// Ports by ifindex.
pub type Ports = HashMap<u32, u16>;

/// Why the packets of a route are left to the kernel; `None` if the route is supported.
pub fn unsupported(state: &RouterState, body: &RouteBody) -> Option<&'static str> {
    let known =
        matches!(body.kind, RTN_UNICAST..=RTN_THROW) && (body.kind != RTN_UNICAST || has_way(body));
    if !known {
        return Some("of an unsupported type");
    }
    if body.nexthops.iter().any(|nh| nh.encap.is_some()) {
        return Some("encapsulates (RTA_ENCAP)");
    }
    if has_expired_hop(body) {
        return Some("its first next hop has expired, and perhaps others have not");
    }
    if body.nhid == 0 {
        return None;
    }
    let Some(object) = state.nexthops.get(&body.nhid) else {
        return Some("its nexthop object is not known");
    };
    if body.kind == RTN_BLACKHOLE && !state.is_blackhole(body.nhid) {
        // Its object was one a moment ago.
        return Some("its type is not that of its nexthop object");
    }
    if object.resilient {
        // The kernel moves buckets that it has not used itself.
        return Some("its nexthop group is resilient");
    }
    let members = object.group.iter().map(|(id, _)| state.nexthops.get(id));
    for nexthop in members.chain([Some(object)]) {
        match nexthop {
            None => return Some("a nexthop object of its group is not known"),
            Some(nexthop) if nexthop.encap => return Some("its nexthop object encapsulates"),
            Some(nexthop) if nexthop.fdb => return Some("its nexthop object is a bridge's (fdb)"),
            Some(_) => {}
        }
    }
    None
}

/// The kernel reports the lifetime of the first next hop of an IPv6 multipath route for all of them. Its lookup leaves out
/// those that have expired (`__find_rr_leaf`) until they are removed, at most 30 s later.
fn has_expired_hop(body: &RouteBody) -> bool {
    body.expiry == Expiry::Unknown || body.expiry == Expiry::Expired && body.nexthops.len() > 1
}

fn has_way(body: &RouteBody) -> bool {
    body.nhid != 0 || !body.nexthops.is_empty()
}

/// The info for workers, and whether the kernel's lookup would use the route: if no next hop is
/// alive, it continues with the next route (`fib_table_lookup`, `find_match`).
pub fn fib_info(
    state: &RouterState,
    family: Family,
    body: &RouteBody,
    devs: &Devs,
) -> (FibInfo, bool) {
    if unsupported(state, body).is_some() {
        let punt = RouteType::Punt(PuntReason::RouteUnsupported);
        let is_usable = body.expiry != Expiry::Expired || has_expired_hop(body);
        return (FibInfo::special(punt), is_usable);
    }
    let object = state.nexthops.get(&body.nhid);
    let kind = match body.kind {
        RTN_UNICAST if state.is_blackhole(body.nhid) => RouteType::Blackhole,
        RTN_UNICAST => RouteType::Unicast,
        RTN_LOCAL => RouteType::Local,
        RTN_BROADCAST => RouteType::Broadcast,
        RTN_ANYCAST => RouteType::Anycast,
        RTN_MULTICAST => RouteType::Multicast,
        RTN_BLACKHOLE => RouteType::Blackhole,
        RTN_UNREACHABLE => RouteType::Unreachable,
        RTN_PROHIBIT => RouteType::Prohibit,
        _ => RouteType::Throw,
    };
    let immortal = body.outlives_its_link(family == Family::V6);
    let dead = |oif: u32| !immortal && state.nexthop_is_dead(family, oif);
    let hop = |oif: u32, gateway, weight, onlink| {
        let dev = devs.number(oif);
        Nexthop { oif, dev, gateway, weight, dead: dead(oif), onlink }
    };
    let from_object = |object: &NexthopState, weight| {
        let onlink = object.flags & u32::from(RTNH_F_ONLINK) != 0;
        hop(object.oif, object.gateway, weight, onlink)
    };
    let nexthops: Nexthops = match object {
        _ if kind == RouteType::Blackhole => Nexthops::new(),
        Some(object) if object.group.is_empty() => [from_object(object, 1)].into(),
        Some(object) => {
            let member = |(id, weight): &(u32, u32)| {
                state.nexthops.get(id).map(|nexthop| from_object(nexthop, *weight))
            };
            object.group.iter().filter_map(member).collect()
        }
        None => {
            let hops = body.nexthops.iter();
            hops.map(|nh| {
                let way = hop(nh.oif, nh.gateway, nh.weight, nh.flags & RTNH_F_ONLINK != 0);
                Nexthop { dead: way.dead || nh.flags & RTNH_F_DEAD != 0, ..way }
            })
            .collect()
        }
    };
    let alive = nexthops.is_empty() || nexthops.iter().any(|nh| !nh.dead);
    // `ip_metrics_convert` limits it.
    let hop_limit = body.metric(RTAX_HOPLIMIT).min(255) as u8;
    let mtu = body.metric(RTAX_MTU);
    let RouteBody { prefsrc, scope, .. } = *body;
    let info = FibInfo { kind, nexthops, mtu, prefsrc, scope, hop_limit };
    (info, alive && body.expiry != Expiry::Expired)
}
