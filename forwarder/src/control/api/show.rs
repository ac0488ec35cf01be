//! Mirrored objects, filtered and printed as `ip` prints them.

use super::page::{Page, Rows};
use super::rows::{ListError, RowWriter};
use super::{Family, Filter, Object, ShowRequest};
use crate::control::config::ipnet::IpNet;
use crate::control::mirror::show::{
    self, AddrsByLink, HopView, LinkAddrView, LinkView, NeighView, NexthopView, RouteView,
};
use crate::control::mirror::state::{self, RouterState};

/// Writes the entries of a page.
///
/// # Errors
/// Those of the connection.
pub fn write(page: &Page, request: &ShowRequest, to: &mut RowWriter<'_>) -> Result<(), ListError> {
    match &page.rows {
        Rows::Routes(rows) => rows.iter().try_for_each(|row| to.row(row))?,
        Rows::Neighs(rows) => rows.iter().try_for_each(|row| to.row(row))?,
        Rows::Nexthops(rows) => rows.iter().try_for_each(|row| to.row(row))?,
        Rows::Shared(state) => write_shared(state, request, to)?,
    }
    Ok(())
}

fn write_shared(
    state: &RouterState,
    request: &ShowRequest,
    to: &mut RowWriter<'_>,
) -> Result<(), ListError> {
    let filter = &request.filter;
    match request.object {
        Object::Link => links(state, filter).try_for_each(|view| to.row(&view))?,
        Object::Addr => {
            let by_link = AddrsByLink::new(state);
            for ifindex in state.links.keys() {
                let view = by_link.show(state, *ifindex);
                if let Some(view) = view.and_then(|view| filter_addrs(view, filter)) {
                    to.row(&view)?;
                }
            }
        }
        Object::Rule => rules(state, filter, to)?,
        Object::Route | Object::Nexthop | Object::Neigh => {}
    }
    Ok(())
}

/// Links that match a filter.
pub fn links(state: &RouterState, filter: &Filter) -> impl Iterator<Item = LinkView> {
    let pass = |view: &LinkView| {
        passes(&filter.dev, &view.ifname) && (!filter.up || view.flags.contains(&"UP"))
    };
    let order = show::links_in_order(state).into_iter();
    order.filter_map(|ifindex| show::link(state, ifindex)).filter(pass)
}

fn filter_addrs(mut view: LinkAddrView, filter: &Filter) -> Option<LinkAddrView> {
    if !passes(&filter.dev, &view.link.ifname) || (filter.up && !view.link.flags.contains(&"UP")) {
        return None;
    }
    view.addr_info.retain(|addr| {
        filter.family.is_none_or(|family| family == Family::of(addr.local))
            && filter.to.is_none_or(|to| to.passes(IpNet::host(addr.local)))
    });
    let is_filtered = filter.family.is_some() || filter.to.is_some();
    (!is_filtered || !view.addr_info.is_empty()).then_some(view)
}

/// As `ip rule`: IPv4 when no family is given.
fn rules(state: &RouterState, filter: &Filter, to: &mut RowWriter<'_>) -> Result<(), ListError> {
    let family = match filter.family.unwrap_or(Family::Inet) {
        Family::Inet => state::Family::V4,
        Family::Inet6 => state::Family::V6,
    };
    let passes = |rule: &&state::RuleState| filter.table.is_none_or(|table| table == rule.table);
    let mut rules = state.rules(family).iter().filter(passes);
    Ok(rules.try_for_each(|rule| to.row(&show::rule(rule)))?)
}

fn passes(wanted: &Option<String>, name: &str) -> bool {
    wanted.as_ref().is_none_or(|wanted| wanted == name)
}

/// Whether a nexthop object matches the filter.
pub(super) fn nexthop_passes(view: &NexthopView, filter: &Filter) -> bool {
    let protocol = view.protocol.as_deref().unwrap_or("unspec");
    filter.id.is_none_or(|id| id == view.id)
        && passes(&filter.protocol, protocol)
        && filter.dev.as_ref().is_none_or(|dev| view.dev.as_ref() == Some(dev))
}

/// Whether a neighbour matches the filter.
pub(super) fn neigh_passes(view: &NeighView, filter: &Filter) -> bool {
    passes(&filter.dev, &view.dev)
        && filter.family.is_none_or(|family| family == Family::of(view.dst))
        && filter.to.is_none_or(|to| to.passes(IpNet::host(view.dst)))
}

/// Whether a route matches the filter, if its table and prefix do.
pub(super) fn route_passes(view: &RouteView, filter: &Filter) -> bool {
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
