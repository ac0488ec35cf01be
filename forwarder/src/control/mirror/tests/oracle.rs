//! Compares the output of the mirror with that of `ip -j`.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde_json::Value;

use super::ip_json;
use crate::control::mirror::state::{Family, RouterState};
use crate::control::mirror::{Mirror, MirrorOptions, show};

fn values(views: Vec<impl Serialize>) -> Vec<Value> {
    views.into_iter().map(|view| serde_json::to_value(view).expect("JSON")).collect()
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => {
            values.into_iter().filter(|v| *v != serde_json::json!({})).collect()
        }
        other => vec![other],
    }
}

fn drop_keys(values: &mut [Value], keys: &[&str]) {
    for value in values {
        if let Value::Object(map) = value {
            map.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
}

fn same(
    what: &str,
    mut ours: Vec<Value>,
    mut theirs: Vec<Value>,
    ordered: bool,
) -> Result<(), String> {
    if !ordered {
        ours.sort_by_cached_key(Value::to_string);
        theirs.sort_by_cached_key(Value::to_string);
    }
    if ours == theirs {
        return Ok(());
    }
    let only = |a: &[Value], b: &[Value]| -> Vec<String> {
        let b: std::collections::HashSet<String> = b.iter().map(Value::to_string).collect();
        a.iter().map(Value::to_string).filter(|v| !b.contains(v)).take(10).collect()
    };
    let (mine, kernel) = (only(&ours, &theirs), only(&theirs, &ours));
    Err(format!(
        "{what}: {} in the mirror, {} in the kernel; only the mirror has {mine:#?}, only the \
         kernel has {kernel:#?}",
        ours.len(),
        theirs.len()
    ))
}

/// Routes of both families in every table. The order at each prefix matters, so routes are
/// numbered.
pub fn routes_theirs() -> Vec<Value> {
    let mut all = Vec::new();
    for args in ["-4 route show table all", "-6 route show table all"] {
        let mut routes = array(ip_json(args));
        // Multicast and anycast are sometimes missing in JSON: iproute2 6.1 prints "anycast" routes
        // differently. Cached lifetimes change with time.
        drop_keys(&mut routes, &["expires", "cache", "age", "users"]);
        all.extend(routes);
    }
    all
}

/// The kernel does not flag IPv4 routes through IPv6 gateways that were added without carrier; the
/// mirror derives the flag from the interface. Whether a multipath route is flagged as a whole
/// depends on the history, not on the current state.
fn drop_link_flags(routes: &mut [Value]) {
    for route in routes.iter_mut().filter(|route| !route["nexthops"].is_null()) {
        route["flags"] = serde_json::json!([]);
    }
    for route in routes.iter_mut() {
        match route.get_mut("nexthops").and_then(Value::as_array_mut) {
            Some(hops) => hops.iter_mut().for_each(drop_derived_flags),
            None => drop_derived_flags(route),
        }
    }
}

/// Drops those of a route or next hop with an IPv6 gateway of an IPv4 route.
fn drop_derived_flags(hop: &mut Value) {
    if hop["via"].is_null() {
        return;
    }
    if let Some(flags) = hop.get_mut("flags").and_then(Value::as_array_mut) {
        flags.retain(|flag| flag == "onlink");
    }
}

/// With nexthop_compat_mode=0, the kernel reports no next hops of routes that have an object; the mirror shows them.
fn drop_unresolved(ours: &mut [Value], theirs: &[Value]) {
    let shows = |route: &Value| ["dev", "nexthops"].iter().any(|key| !route[key].is_null());
    if theirs.iter().any(|route| !route["nhid"].is_null() && shows(route)) {
        return;
    }
    let hidden = ["dev", "gateway", "via", "nexthops"];
    for route in ours.iter_mut().filter(|route| !route["nhid"].is_null()) {
        route["flags"] = serde_json::json!([]);
        drop_keys(std::slice::from_mut(route), &hidden);
    }
}

/// Adds to each route its position at its prefix and table.
fn number(routes: &mut [Value]) {
    let mut seen = std::collections::HashMap::<String, usize>::new();
    for route in routes {
        let place = seen.entry(format!("{} {} {}", route["table"], route["dst"], route["pref"]));
        let place = place.or_default();
        route["place"] = (*place).into();
        *place += 1;
    }
}

/// Lifetimes are counted down between the two: those that differ by a second or two are equal.
fn same_lifetimes(ours: &[Value], theirs: &mut [Value]) -> Result<(), String> {
    for (ours, theirs) in ours.iter().zip(theirs) {
        let (ours, theirs) = (ours["addr_info"].as_array(), theirs["addr_info"].as_array_mut());
        for (ours, theirs) in ours.into_iter().flatten().zip(theirs.into_iter().flatten()) {
            for key in ["valid_life_time", "preferred_life_time"] {
                let (a, b) = (ours[key].as_u64(), theirs[key].as_u64());
                if a.zip(b).is_some_and(|(a, b)| a.abs_diff(b) > 2) {
                    return Err(format!("{key}: {a:?} in the mirror, {b:?} in the kernel"));
                }
                theirs[key] = ours[key].clone();
            }
        }
    }
    Ok(())
}

/// Compares the mirror with `ip -j`, in everything the mirror shows.
pub fn equals_kernel(mirror: &Mirror) -> Result<(), String> {
    let state = mirror.state();
    let ours = values(show::links(state));
    same("links", ours, array(ip_json("link show")), true)?;
    let (mut ours, mut theirs) = (values(show::addrs(state)), array(ip_json("addr show")));
    same_lifetimes(&ours, &mut theirs)?;
    drop_keys(&mut ours, &["link_netnsid"]);
    drop_keys(&mut theirs, &["link_netnsid"]);
    same("addresses", ours, theirs, true)?;
    for (family, args) in [(Family::V4, "-4 rule show"), (Family::V6, "-6 rule show")] {
        let mut ours = values(show::rules(state, family));
        drop_keys(&mut ours, &["unsupported"]);
        let mut theirs = array(ip_json(args));
        let unshown = ["iif_detached", "oif_detached", "unresolved"];
        drop_keys(&mut theirs, &unshown);
        same(args, ours, theirs, true)?;
    }
    let (ours, theirs) = (values(show::nexthops(state)), array(ip_json("nexthop show")));
    same("nexthops", ours, theirs, false)?;
    let mut ours = values(show::routes(state));
    number(&mut ours);
    let mut theirs = routes_theirs();
    number(&mut theirs);
    drop_link_flags(&mut ours);
    drop_link_flags(&mut theirs);
    drop_unresolved(&mut ours, &theirs);
    same("routes", ours, theirs, false)?;
    let mut theirs = array(ip_json("-4 neigh show"));
    theirs.extend(array(ip_json("-6 neigh show")));
    same("neighbours", values(show::neighs(state)), theirs, false)
}

/// Compares what is not shown with a mirror that has just been started, with the same ports.
pub fn equals_fresh(mirror: &Mirror, ports: &[(u32, u16)]) -> Result<(), String> {
    let mut fresh = Mirror::start(MirrorOptions::default()).map_err(|error| error.to_string())?;
    fresh.set_ports(ports);
    let (ours, theirs) = (mirror.state(), fresh.state());
    same_lines("links", &ours.links, &theirs.links)?;
    same_lines("nexthops", &ours.nexthops, &theirs.nexthops)?;
    same_lines("rules", &(&ours.rules4, &ours.rules6), &(&theirs.rules4, &theirs.rules6))?;
    let netconf =
        |of: &RouterState| of.netconf.iter().map(|it| format!("{it:?}")).collect::<BTreeSet<_>>();
    same_lines("netconf", &netconf(ours), &netconf(theirs))?;
    same_lines("settings", &ours.sysctls, &theirs.sysctls)?;
    for (ifindex, _) in ports {
        let port = |mirror: &Mirror| mirror.tables().links.ifindex(*ifindex).cloned();
        same_lines("a port in the tables", &port(mirror), &port(&fresh))?;
    }
    Ok(())
}

/// Compares what is printed of two values.
fn same_lines(what: &str, ours: &impl Debug, theirs: &impl Debug) -> Result<(), String> {
    let (ours, theirs) = (format!("{ours:#?}"), format!("{theirs:#?}"));
    if ours == theirs {
        return Ok(());
    }
    let only = |a: &str, b: &str| -> Vec<String> {
        let b: BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).map(|line| line.trim().to_owned()).collect()
    };
    Err(format!("{what}: {:?} instead of {:?}", only(&ours, &theirs), only(&theirs, &ours)))
}
