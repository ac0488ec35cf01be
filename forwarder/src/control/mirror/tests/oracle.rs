//! What `ip -j` says, compared with what the mirror says.

use serde::Serialize;
use serde_json::Value;

use super::ip_json;
use crate::control::mirror::state::Family;
use crate::control::mirror::{Mirror, show};

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

#[track_caller]
fn assert_same(what: &str, mut ours: Vec<Value>, mut theirs: Vec<Value>, ordered: bool) {
    if !ordered {
        ours.sort_by_key(Value::to_string);
        theirs.sort_by_key(Value::to_string);
    }
    let only = |a: &[Value], b: &[Value]| -> Vec<String> {
        a.iter().filter(|v| !b.contains(v)).map(Value::to_string).take(10).collect()
    };
    if ours.len() < 5000 || ours != theirs {
        let (mine, kernel) = (only(&ours, &theirs), only(&theirs, &ours));
        assert!(
            mine.is_empty() && kernel.is_empty(),
            "{what}: only the mirror has {mine:#?}, only the kernel has {kernel:#?}"
        );
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: number");
    assert!(ours == theirs, "{what}: order: mirror {ours:#?}, kernel {theirs:#?}");
}

/// Routes of both families in every table. At one prefix the order counts, so each is numbered.
pub fn routes_theirs() -> Vec<Value> {
    let mut all = Vec::new();
    for args in ["-4 route show table all", "-6 route show table all"] {
        let mut routes = array(ip_json(args));
        // Multicast and "anycast" are sometimes left out of JSON: iproute2 6.1 prints "anycast"
        // routes as others do. Cached lifetimes differ from one second to the next.
        drop_keys(&mut routes, &["expires", "cache", "age", "users"]);
        all.extend(routes);
    }
    all
}

/// Holds the mirror against `ip -j`, whatever it can show.
#[track_caller]
pub fn assert_equals_kernel(mirror: &Mirror) {
    let state = mirror.state();
    let ours = values(show::links(state));
    assert_same("links", ours, array(ip_json("link show")), true);
    let (mut ours, mut theirs) = (values(show::addrs(state)), array(ip_json("addr show")));
    drop_keys(&mut ours, &["link_netnsid"]);
    drop_keys(&mut theirs, &["link_netnsid"]);
    assert_same("addresses", ours, theirs, true);
    for (family, args) in [(Family::V4, "-4 rule show"), (Family::V6, "-6 rule show")] {
        let mut ours = values(show::rules(state, family));
        drop_keys(&mut ours, &["unsupported"]);
        let mut theirs = array(ip_json(args));
        drop_keys(
            &mut theirs,
            &["ipproto", "sport", "dport", "uid_start", "uid_end", "unresolved"],
        );
        assert_same(args, ours, theirs, true);
    }
    let (ours, theirs) = (values(show::nexthops(state)), array(ip_json("nexthop show")));
    assert_same("nexthops", ours, theirs, false);
    assert_same("routes", values(show::routes(state)), routes_theirs(), false);
    let mut theirs = array(ip_json("-4 neigh show"));
    theirs.extend(array(ip_json("-6 neigh show")));
    assert_same("neighbours", values(show::neighs(state)), theirs, false);
}
