//! Lists kernel configuration that is not followed.

use std::ops::Bound;

use xdp_prog::VLANS_MAX;

use super::Unmirrored;
use super::compile::info::{Ports, unsupported as route_unsupported};
use super::compile::links::{RxHandlers, unsupported as link_unsupported};
use super::compile::rules::{is_undecided as rules_undecided, unsupported as rule_unsupported};
use super::compile::vlans::{NotMirrored, place};
use super::compile::xfrmis::{self, XFRMIS_MAX};
use super::rib::{Net, Rib, RibAddr};
use super::show;
use super::state::{Family, RouterState};

/// Routes listed individually; of the others only the number is reported.
const ROUTES_NAMED_MAX: usize = 20;

/// Lists everything that is not followed.
pub fn list(state: &RouterState, ports: &Ports) -> Vec<Unmirrored> {
    let mut list = Vec::new();
    links(state, ports, &mut list);
    for family in Family::ALL {
        for (rule, view) in state.rules(family).iter().zip(show::rules(state, family)) {
            if let Some(why) = rule_unsupported(rule) {
                let text = view.to_string().replace(":\t", " ");
                let what = format!("{} rule {text}", name(family));
                list.push(Unmirrored {
                    what,
                    why: format!(
                        "{why}: packets that match its other selectors stay in the kernel"
                    ),
                });
            }
        }
    }
    routes(state, &state.routes4, Family::V4, &mut list);
    routes(state, &state.routes6, Family::V6, &mut list);
    if state.sysctls.ip_forward_use_pmtu {
        list.push(Unmirrored {
            what: "net.ipv4.ip_forward_use_pmtu".into(),
            why: "path MTUs that the kernel learns are not followed: IPv4 stays in the kernel"
                .into(),
        });
    }
    settings(state, &mut list);
    if rules_undecided(&state.rules6, Family::V6) {
        list.push(Unmirrored {
            what: "missing initial IPv6 rules".into(),
            why: "the kernel may route as if they existed: IPv6 stays in the kernel".into(),
        });
    }
    list
}

/// Settings in force that are left to the kernel.
fn settings(state: &RouterState, list: &mut Vec<Unmirrored>) {
    let sysctls = &state.sysctls;
    let mut left = |what: String, why: &str| list.push(Unmirrored { what, why: why.to_owned() });
    let hashes = [
        (
            "ipv4",
            sysctls.multipath_hash_policy4,
            sysctls.multipath_hash_fields4,
            has_multipath(state, &state.routes4),
        ),
        (
            "ipv6",
            sysctls.multipath_hash_policy6,
            sysctls.multipath_hash_fields6,
            has_multipath(state, &state.routes6),
        ),
    ];
    for (family, policy, fields, has_multipath) in hashes {
        let looks_inside = policy == 2 || policy == 3 && fields.have_inner();
        let what = format!("net.{family}.fib_multipath_hash_policy {policy}");
        if has_multipath && looks_inside {
            left(
                what,
                "the kernel looks into tunnels: packets of GRE, IPv4 and IPv6 in IP by routes with several next hops stay in it",
            );
        } else if has_multipath && policy > 3 {
            left(what, "not known: packets by routes with several next hops stay in the kernel");
        }
    }
    if sysctls.multipath_use_neigh && hashes[0].3 {
        left(
            "net.ipv4.fib_multipath_use_neigh".to_owned(),
            "the kernel leaves out next hops that it cannot reach: packets by IPv4 routes with several next hops stay in it",
        );
    }
    let extended = [
        ("net.ipv4.icmp_errors_extension_mask", sysctls.icmp_errors_extended),
        ("net.ipv6.icmp.errors_extension_mask", sysctls.icmp6_errors_extended),
    ];
    for (name, _) in extended.iter().filter(|(_, is_set)| *is_set) {
        left(
            (*name).to_owned(),
            "errors with extensions are the kernel's to send: packets that they are about stay in it",
        );
    }
}

/// Settings in force on ports that are not followed: packets are forwarded without them.
pub fn not_followed(state: &RouterState, ports: &Ports) -> Vec<String> {
    const POLICIES: &str = "IPsec policies apply to packets of the port all the same";
    let mut list = Vec::new();
    let all = &state.sysctls_all;
    for (ifindex, own) in &state.sysctls_dev {
        let of_port = state.links.get(ifindex).filter(|_| ports.contains_key(ifindex));
        let Some(link) = of_port else { continue };
        let own_or_all = [
            ("ipv4", "disable_policy", own.disable_policy4, all.disable_policy4),
            ("ipv4", "disable_xfrm", own.disable_xfrm, all.disable_xfrm),
            ("ipv6", "disable_policy", own.disable_policy6, all.disable_policy6),
        ];
        for (family, key, of_own, of_all) in own_or_all {
            if of_own || of_all {
                let name = if of_own { &link.name } else { "all" };
                list.push(format!("net.{family}.conf.{name}.{key} is not followed: {POLICIES}"));
            }
        }
        // IN_DEV_RX_REDIRECTS, of an interface that forwards.
        if all.accept_redirects && own.accept_redirects {
            list.push(format!(
                "net.ipv4.conf.{}.accept_redirects: routes that the kernel learns from redirects are not followed",
                link.name
            ));
        }
    }
    list.dedup();
    list
}

/// Whether a route has several next hops.
fn has_multipath<A: RibAddr>(state: &RouterState, rib: &Rib<A>) -> bool {
    let is_group = |id: u32| state.nexthops.get(&id).is_some_and(|nexthop| nexthop.group.len() > 1);
    rib.bodies().iter().any(|(_, body)| body.nexthops.len() > 1 || is_group(body.nhid))
}

/// Ports and VLANs of ports, and interfaces of IPsec.
fn links(state: &RouterState, ports: &Ports, list: &mut Vec<Unmirrored>) {
    let rx_handlers = RxHandlers::new(state);
    let (mut followed, mut xfrmis) = (0, 0);
    for link in state.links.values() {
        let why = if link.xfrm.is_some() || link.vti.is_some() {
            xfrmis += usize::from(link.xfrm.is_some());
            let first = || format!("not one of the first {XFRMIS_MAX} xfrm interfaces");
            let why = match link.xfrm {
                Some(_) if xfrmis > XFRMIS_MAX => Some(first()),
                Some(_) => xfrmis::obstacle(state, link, &rx_handlers),
                None => Some("a VTI".to_owned()),
            };
            why.filter(|_| link.is_up())
        } else if ports.contains_key(&link.ifindex) {
            link_unsupported(state, link, &rx_handlers)
        } else {
            match place(state, link, ports, &rx_handlers) {
                Err(NotMirrored::Unsupported(why)) => Some(why),
                Err(NotMirrored::Irrelevant) => None,
                Ok(_) => {
                    followed += 1;
                    (followed > VLANS_MAX)
                        .then(|| format!("not one of the first {VLANS_MAX} VLANs"))
                }
            }
        };
        if let Some(why) = why {
            let what = format!("interface {}", link.name);
            list.push(Unmirrored { what, why: format!("{why}: its packets stay in the kernel") });
        }
    }
}

fn routes<A: RibAddr>(
    state: &RouterState,
    rib: &Rib<A>,
    family: Family,
    list: &mut Vec<Unmirrored>,
) {
    let why = |body: &super::rib::RouteBody| {
        if body.tos != 0 {
            return Some("chosen by tos");
        }
        if body.src.is_some() {
            return Some("chosen by source prefix");
        }
        route_unsupported(state, body)
    };
    // Nearly always no body is concerned, and no routes are scanned; otherwise the scan ends when
    // enough routes are listed.
    let mut is_left = vec![false; rib.bodies().capacity()];
    let mut count = 0;
    for (id, _) in rib.bodies().iter().filter(|(_, body)| why(body).is_some()) {
        is_left[id as usize] = true;
        count += rib.bodies().routes(id);
    }
    let named = count.min(ROUTES_NAMED_MAX);
    let walk = rib.walk(0, |_| (Bound::Unbounded, Bound::Unbounded)).filter(|_| named != 0);
    let left = walk.flat_map(|(table, net, ids)| ids.iter().map(move |id| (table, net, *id)));
    let left = left.filter(|(_, _, id)| is_left.get(*id as usize) == Some(&true)).take(named);
    for (table, net, id) in left {
        let Some(body) = rib.bodies().get(id) else { continue };
        let Some(why) = why(body) else { continue };
        let what = format!("{} route {}", name(family), show::route(state, table, net, body));
        list.push(Unmirrored { what, why: format!("{why}: its packets stay in the kernel") });
    }
    let more = count - named;
    if more != 0 {
        list.push(Unmirrored {
            what: format!("{more} more {} routes", name(family)),
            why: "not listed individually: their packets stay in the kernel".into(),
        });
    }
}

/// IPv6 prefixes with several equal routes.
pub fn chosen_by_iif(prefixes: &[(u32, Net<u128>)], list: &mut Vec<Unmirrored>) {
    for (table, (addr, len)) in prefixes.iter().take(ROUTES_NAMED_MAX) {
        list.push(Unmirrored {
            what: format!("IPv6 routes {}/{len} table {table}", addr.to_ip()),
            why: "of equal metric, chosen by incoming interface: their packets stay in the kernel"
                .into(),
        });
    }
    if let Some(more) = prefixes.len().checked_sub(ROUTES_NAMED_MAX).filter(|more| *more != 0) {
        let what = format!("{more} more IPv6 prefixes");
        list.push(Unmirrored {
            what,
            why: "of equal metric, chosen by incoming interface: their packets stay in the kernel"
                .into(),
        });
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
