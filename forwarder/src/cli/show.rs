//! `link|addr|route|rule|nexthop|neigh show`: the daemon's mirrored state, with iproute2's filters.

use std::fs;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Global, Usage, unexpected};
use crate::control::api::{
    Filter, Format, Object, Rendered, Request, Response, Selector, ShowRequest,
};
use crate::control::config::ipnet::IpNet;

/// RT_TABLE_MAIN.
const TABLE_MAIN: u32 = 254;

/// An object and a command; without a command it is shown.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct NounArgs {
    #[command(subcommand)]
    verb: Option<NounVerb>,
}

#[derive(Debug, Subcommand)]
enum NounVerb {
    /// Show all, or those that match the filter.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show(ShowArgs),
}

/// The filter's words.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// dev NAME | up | table ID | [to [root|match|exact]] PREFIX | type T | proto P | via A | id N.
    #[arg(value_name = "FILTER")]
    pub words: Vec<String>,
}

/// `link`: as the other objects, with more details.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct LinkArgs {
    /// Show everything: queues and the workers that poll them, interrupts, rings, offloads, counters, XDP
    /// mode.
    #[arg(short, long, global = true)]
    details: bool,
    #[command(flatten)]
    noun: NounArgs,
}

impl LinkArgs {
    /// Requests the interfaces and prints them.
    pub fn show(&self, global: &Global) -> Result<()> {
        ask(global, Object::Link, self.noun.words(), self.details)
    }
}

impl NounArgs {
    /// The filter's words.
    pub fn words(&self) -> &[String] {
        self.verb.as_ref().map_or(&[], |NounVerb::Show(show)| &show.words)
    }
}

/// Requests the objects and prints them.
pub fn show(global: &Global, object: Object, words: &[String]) -> Result<()> {
    ask(global, object, words, false)
}

fn ask(global: &Global, object: Object, words: &[String], details: bool) -> Result<()> {
    let mut filter = parse_filter(object, words).map_err(Usage)?;
    filter.family = global.family();
    let output = global.output();
    let format = if output.json { Format::Json } else { Format::Text };
    match global.ask(&Request::Show(ShowRequest { object, filter, format, details }))? {
        Response::Rendered(Rendered::Text(text)) => output.text(&text),
        Response::Rendered(Rendered::Json(value)) => output.json(&value),
        other => Err(unexpected(&other)),
    }
}

/// Parses the words after `show`.
fn parse_filter(object: Object, words: &[String]) -> Result<Filter, String> {
    let mut filter = Filter::default();
    let mut table_named = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` wants a value"));
        match (object, word) {
            (Object::Link | Object::Addr, "up") => filter.up = true,
            (Object::Rule, "dev") => return Err(unknown(object, word)),
            (_, "dev" | "oif") => filter.dev = Some(value()?.to_owned()),
            (Object::Route | Object::Rule, "table" | "lookup") => {
                filter.table = parse_table(value()?)?;
                table_named = true;
            }
            (Object::Route, "type") => filter.kind = Some(value()?.to_owned()),
            (Object::Route | Object::Nexthop, "proto" | "protocol") => {
                filter.protocol = Some(value()?.to_owned());
            }
            (Object::Route, "via") => {
                let text = value()?;
                filter.via = Some(text.parse().map_err(|_| format!("`{text}` is not an address"))?);
            }
            (Object::Nexthop, "id") => {
                let text = value()?;
                filter.id = Some(text.parse().map_err(|_| format!("`{text}` is not a number"))?);
            }
            (Object::Route | Object::Addr | Object::Neigh, "to") => {
                filter.to = Some(parse_selector(value()?, &mut words)?);
            }
            (Object::Route, "root" | "match" | "exact") => {
                filter.to = Some(parse_selector(word, &mut words)?);
            }
            (Object::Route | Object::Neigh, word) if is_prefix(word) => {
                filter.to = Some(parse_selector(word, &mut words)?);
            }
            // `ip addr show eth0`, `ip link show eth0`.
            (Object::Link | Object::Addr, name) if filter.dev.is_none() => {
                filter.dev = Some(name.to_owned());
            }
            (object, word) => return Err(unknown(object, word)),
        }
    }
    if object == Object::Route && !table_named {
        filter.table = Some(TABLE_MAIN);
    }
    Ok(filter)
}

fn unknown(object: Object, word: &str) -> String {
    let expected = match object {
        Object::Link => "[dev] NAME, up",
        Object::Addr => "[dev] NAME, up, to PREFIX",
        Object::Route => {
            "[to [root|match|exact]] PREFIX, table ID, dev NAME, via ADDR, type TYPE, proto PROTO"
        }
        Object::Rule => "table ID",
        Object::Nexthop => "id N, dev NAME, proto PROTO",
        Object::Neigh => "dev NAME, [to] PREFIX",
    };
    format!("filter: found `{word}`, expected {expected}")
}

fn is_prefix(word: &str) -> bool {
    word.parse::<IpNet>().is_ok()
}

fn parse_selector<'a>(
    word: &'a str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<Selector, String> {
    let (kind, prefix): (fn(IpNet) -> Selector, &str) = match word {
        "root" | "match" | "exact" => {
            let prefix = words.next().ok_or(format!("`{word}` wants a prefix"))?;
            match word {
                "root" => (Selector::Root, prefix),
                "match" => (Selector::Match, prefix),
                _ => (Selector::Exact, prefix),
            }
        }
        prefix => (Selector::Exact, prefix),
    };
    Ok(kind(prefix.parse::<IpNet>()?))
}

/// A table's ID, by number or name; `None`: all.
fn parse_table(text: &str) -> Result<Option<u32>, String> {
    let known = match text {
        "all" => return Ok(None),
        "main" => Some(TABLE_MAIN),
        "local" => Some(255),
        "default" => Some(253),
        _ => parse_number(text).or_else(|| named_table(text)),
    };
    known.map(Some).ok_or(format!("`{text}` is not a routing table, expected a number or a name"))
}

/// A number in decimal, or hexadecimal with 0x.
pub fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The table of a name, as iproute2 knows it.
fn named_table(name: &str) -> Option<u32> {
    let files = ["/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables"];
    let more = ["/etc/iproute2/rt_tables.d", "/usr/share/iproute2/rt_tables.d"]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
    let texts = files
        .into_iter()
        .map(Into::into)
        .chain(more)
        .filter_map(|path: std::path::PathBuf| fs::read_to_string(path).ok());
    texts.into_iter().find_map(|text| find_table(&text, name))
}

fn find_table(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let number = parse_number(words.next()?)?;
        (words.next()? == name).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(object: Object, line: &str) -> Result<Filter, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse_filter(object, &words)
    }

    #[test]
    fn route_filters_are_parsed_as_in_iproute2() {
        assert_eq!(filter(Object::Route, "").expect("right").table, Some(254));
        assert_eq!(filter(Object::Route, "table all").expect("right").table, None);
        assert_eq!(filter(Object::Route, "table local").expect("right").table, Some(255));
        let some = filter(Object::Route, "10.0.0.0/8 dev eth0 table 100 via 192.0.2.1 proto bgp");
        let some = some.expect("right");
        assert_eq!(some.to, Some(Selector::Exact("10.0.0.0/8".parse().expect("a prefix"))));
        assert_eq!((some.dev.as_deref(), some.table), (Some("eth0"), Some(100)));
        assert_eq!(some.protocol.as_deref(), Some("bgp"));
        let root = filter(Object::Route, "to root 2001:db8::/32 type blackhole").expect("right");
        assert!(matches!(root.to, Some(Selector::Root(_))));
    }

    #[test]
    fn a_name_alone_is_a_device_where_iproute2_takes_it_so() {
        assert_eq!(filter(Object::Link, "eth0").expect("right").dev.as_deref(), Some("eth0"));
        assert!(filter(Object::Link, "eth0 up").expect("right").up);
        assert!(filter(Object::Rule, "eth0").is_err());
        assert_eq!(filter(Object::Nexthop, "id 7").expect("right").id, Some(7));
    }

    #[test]
    fn wrong_words_are_named_with_what_was_expected() {
        for (line, expected) in [
            ("bogus", "found `bogus`, expected [to"),
            ("table", "`table` wants a value"),
            ("table no-such-table", "not a routing table"),
            ("via 1.2.3", "not an address"),
            ("to root", "wants a prefix"),
            ("root 10.0.0.0/99", "at most 32"),
        ] {
            let error = filter(Object::Route, line).expect_err("wrong");
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn table_names_come_from_iproute2s_file() {
        let text = "# comment\n255\tlocal\n 100 isp1 # uplink\n0x65 isp2\n#7 off\n";
        assert_eq!(find_table(text, "isp1"), Some(100));
        assert_eq!(find_table(text, "isp2"), Some(101));
        assert_eq!(find_table(text, "off"), None);
    }
}
