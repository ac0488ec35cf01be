//! What is mirrored, filtered and written as `ip` writes it.

use std::fmt::Display;
use std::net::IpAddr;

use serde::Serialize;

use super::route_get::route_get;
use super::{Family, Filter, Format, Object, Rendered, RouteGetRequest, Selector, ShowRequest};
use crate::control::config::ipnet::IpNet;
use crate::control::mirror::rib::{Rib, RibAddr};
use crate::control::mirror::show::{self, HopView, RouteView};
use crate::control::mirror::state::{self, RouterState};
use crate::tables::Tables;

/// The loopback interface has this number in every namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Answers `show`.
pub fn show(state: &RouterState, request: &ShowRequest) -> Rendered {
    let (filter, format) = (&request.filter, request.format);
    match request.object {
        Object::Link => render(links(state, filter).into_iter(), format),
        Object::Addr => render(addrs(state, filter).into_iter(), format),
        Object::Route => render(routes(state, filter).into_iter(), format),
        Object::Rule => render(rules(state, filter).into_iter(), format),
        Object::Nexthop => {
            let pass = |view: &show::NexthopView| {
                let protocol = view.protocol.as_deref().unwrap_or("unspec");
                filter.id.is_none_or(|id| id == view.id)
                    && passes(&filter.protocol, protocol)
                    && filter.dev.as_ref().is_none_or(|dev| view.dev.as_ref() == Some(dev))
            };
            render(show::nexthops(state).into_iter().filter(pass), format)
        }
        Object::Neigh => {
            let pass = |view: &show::NeighView| {
                passes(&filter.dev, &view.dev)
                    && filter.family.is_none_or(|family| family == Family::of(view.dst))
                    && filter.to.is_none_or(|to| to.passes(IpNet::host(view.dst)))
            };
            render(show::neighs(state).into_iter().filter(pass), format)
        }
    }
}

/// Answers `route get`.
///
/// # Errors
/// When the interface named is not there.
pub fn get(
    state: &RouterState,
    tables: &Tables,
    request: &RouteGetRequest,
) -> Result<Rendered, String> {
    let iif = match &request.iif {
        // As `ip` asks: a packet of our own, which comes in by lo.
        None => LOOPBACK_IFINDEX,
        Some(name) => {
            let link = state.links.values().find(|link| link.name == *name);
            link.ok_or_else(|| format!("route get: no interface {name}"))?.ifindex
        }
    };
    let answer = |dst: &IpAddr| route_get(tables, *dst, request.from, iif, request.mark);
    Ok(render(request.addrs.iter().map(answer), request.format))
}

fn passes(wanted: &Option<String>, name: &str) -> bool {
    wanted.as_ref().is_none_or(|wanted| wanted == name)
}

/// Links that a filter lets pass.
pub fn links(state: &RouterState, filter: &Filter) -> Vec<show::LinkView> {
    let pass = |view: &show::LinkView| {
        passes(&filter.dev, &view.ifname) && (!filter.up || view.flags.contains(&"UP"))
    };
    show::links(state).into_iter().filter(pass).collect()
}

fn addrs(state: &RouterState, filter: &Filter) -> Vec<show::LinkAddrView> {
    let mut views = show::addrs(state);
    views.retain(|view| {
        passes(&filter.dev, &view.link.ifname) && (!filter.up || view.link.flags.contains(&"UP"))
    });
    for view in &mut views {
        view.addr_info.retain(|addr| {
            filter.family.is_none_or(|family| family == Family::of(addr.local))
                && filter.to.is_none_or(|to| to.passes(IpNet::host(addr.local)))
        });
    }
    if filter.family.is_some() || filter.to.is_some() {
        views.retain(|view| !view.addr_info.is_empty());
    }
    views
}

/// As `ip route`: IPv4 when no family is named.
fn routes(state: &RouterState, filter: &Filter) -> Vec<RouteView> {
    match filter.family.unwrap_or(Family::Inet) {
        Family::Inet => family_routes(state, &state.routes4, filter),
        Family::Inet6 => family_routes(state, &state.routes6, filter),
    }
}

fn family_routes<A: RibAddr>(state: &RouterState, rib: &Rib<A>, filter: &Filter) -> Vec<RouteView> {
    let wanted = |to: Selector, net: (A, u8)| to.passes(IpNet { addr: net.0.to_ip(), len: net.1 });
    let mut found: Vec<_> = rib
        .iter()
        .filter(|(table, net, _)| {
            filter.table.is_none_or(|wanted| wanted == *table)
                && filter.to.is_none_or(|to| wanted(to, *net))
        })
        .collect();
    // Stable: what stands at one prefix stays in the kernel's order.
    found.sort_by_key(|(table, net, _)| (*table, *net));
    let views = found.into_iter().map(|(table, net, body)| show::route(state, table, net, body));
    views.filter(|view| route_passes(view, filter)).collect()
}

fn route_passes(view: &RouteView, filter: &Filter) -> bool {
    let kind = view.kind.as_deref().unwrap_or("unicast");
    let protocol = view.protocol.as_deref().unwrap_or("boot");
    let mut hops = view.hop.iter().chain(&view.nexthops);
    let by = |hop: &HopView| {
        filter.dev.as_ref().is_none_or(|dev| hop.dev.as_ref() == Some(dev))
            && filter.via.is_none_or(|via| {
                hop.gateway == Some(via) || hop.via.as_ref().is_some_and(|v| v.host == via)
            })
    };
    passes(&filter.kind, kind)
        && passes(&filter.protocol, protocol)
        && ((filter.dev.is_none() && filter.via.is_none()) || hops.any(by))
}

/// As `ip rule`: IPv4 when no family is named.
fn rules(state: &RouterState, filter: &Filter) -> Vec<show::RuleView> {
    let family = match filter.family.unwrap_or(Family::Inet) {
        Family::Inet => state::Family::V4,
        Family::Inet6 => state::Family::V6,
    };
    let tables = state.rules(family).iter().map(|rule| rule.table);
    let views = show::rules(state, family).into_iter().zip(tables);
    let wanted = views.filter(|(_, table)| filter.table.is_none_or(|wanted| wanted == *table));
    wanted.map(|(view, _)| view).collect()
}

/// Writes what was found in the form asked for.
pub fn render<T: Serialize + Display>(views: impl Iterator<Item = T>, format: Format) -> Rendered {
    match format {
        Format::Text => Rendered::Text(views.fold(String::new(), |text, view| {
            let view = view.to_string();
            text + view.trim_end_matches('\n') + "\n"
        })),
        Format::Json => Rendered::Json(
            views.map(|view| serde_json::to_value(view).unwrap_or_default()).collect(),
        ),
    }
}
