//! `route get`: looks up routes in the daemon's tables. `route show` is in [`super::show`].

use std::io::{self, BufRead};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::show::{self, ShowArgs, parse_number};
use super::{Global, Usage, unexpected};
use crate::control::api::client::Client;
use crate::control::api::{Format, Object, Rendered, Request, Response, RouteGetRequest};

/// Addresses per request, so that requests and answers stay small.
const ADDRS_A_REQUEST: usize = 1000;

/// `route` and its subcommands.
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub struct RouteArgs {
    #[command(subcommand)]
    verb: Option<RouteVerb>,
}

#[derive(Debug, Subcommand)]
enum RouteVerb {
    /// Show the routes of table main, or those that match the filter.
    #[command(alias = "list", alias = "lst", alias = "ls", alias = "s")]
    Show(ShowArgs),
    /// Look up the route to an address; `-` reads one address per line.
    #[command(alias = "g")]
    Get(GetArgs),
}

#[derive(Debug, Args)]
struct GetArgs {
    /// ADDR|- [from ADDR] [iif NAME] [mark MARK].
    #[arg(value_name = "ADDR", required = true)]
    words: Vec<String>,
}

/// Shows or looks up routes. As with `ip`, looking up a single address without a route is a failure.
pub fn route(global: &Global, args: &RouteArgs) -> Result<ExitCode> {
    match &args.verb {
        None => show::show(global, Object::Route, &[]),
        Some(RouteVerb::Show(args)) => show::show(global, Object::Route, &args.words),
        Some(RouteVerb::Get(args)) => return get(global, &args.words),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A lookup, before its addresses are read.
#[derive(Debug, Default, PartialEq)]
struct Question {
    /// `None`: addresses come from standard input.
    addr: Option<IpAddr>,
    from: Option<IpAddr>,
    iif: Option<String>,
    mark: u32,
}

fn parse_question(words: &[String]) -> Result<Question, String> {
    let address =
        |text: &str| text.parse::<IpAddr>().map_err(|_| format!("`{text}` is not an address"));
    let mut question = Question::default();
    let mut destination = None;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` wants a value"));
        match word {
            "from" => question.from = Some(address(value()?)?),
            "iif" => question.iif = Some(value()?.to_owned()),
            "mark" => {
                let text = value()?;
                question.mark = parse_number(text).ok_or(format!("`{text}` is not a number"))?;
            }
            _ if destination.is_some() => {
                return Err(format!("found `{word}`, expected from, iif or mark"));
            }
            "to" => destination = Some(value()?),
            word => destination = Some(word),
        }
    }
    match destination {
        None => return Err("route get wants an address".into()),
        Some("-") => {}
        Some(text) => question.addr = Some(address(text)?),
    }
    Ok(question)
}

fn get(global: &Global, words: &[String]) -> Result<ExitCode> {
    let question = parse_question(words).map_err(Usage)?;
    let addrs = match question.addr {
        Some(addr) => vec![addr],
        None => read_addrs(io::stdin().lock())?,
    };
    let output = global.output();
    let mut client = Client::connect(&global.control())?;
    let mut array = Vec::new();
    let mut nowhere = false;
    for addrs in addrs.chunks(ADDRS_A_REQUEST) {
        let request = Request::RouteGet(RouteGetRequest {
            addrs: addrs.to_vec(),
            from: question.from,
            iif: question.iif.clone(),
            mark: question.mark,
            format: if output.json { Format::Json } else { Format::Text },
        });
        match client.ask(&request)? {
            Response::Rendered(Rendered::Text(text)) => {
                nowhere = leads_nowhere(text.split_whitespace().next());
                output.text(&text)?;
            }
            Response::Rendered(Rendered::Json(Value::Array(part))) => {
                nowhere = leads_nowhere(part.first().and_then(|answer| answer["type"].as_str()));
                array.extend(part);
            }
            other => return Err(unexpected(&other)),
        }
    }
    if output.json {
        output.json(&array)?;
    }
    let failed = nowhere && question.addr.is_some();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether an answer's type, or the first word of its line, means that packets are not forwarded.
fn leads_nowhere(kind: Option<&str>) -> bool {
    matches!(kind, Some("noroute" | "blackhole" | "unreachable" | "prohibit"))
}

/// One address per line; empty lines and text after `#` are ignored.
fn read_addrs(input: impl BufRead) -> Result<Vec<IpAddr>> {
    let mut addrs = Vec::new();
    for (n, line) in input.lines().enumerate() {
        let line = line?;
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let wrong = || Usage(format!("standard input, line {}: `{text}` is not an address", n + 1));
        addrs.push(text.parse().map_err(|_| wrong())?);
    }
    Ok(addrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(line: &str) -> Result<Question, String> {
        parse_question(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn lookups_are_parsed_as_in_iproute2() {
        let full = question("192.0.2.1 from 192.0.2.2 iif eth0 mark 0x10").expect("right");
        assert_eq!(full.addr, "192.0.2.1".parse().ok());
        assert_eq!(full.from, "192.0.2.2".parse().ok());
        assert_eq!((full.iif.as_deref(), full.mark), (Some("eth0"), 16));
        assert_eq!(
            question("iif eth0 to 2001:db8::1").expect("right").addr,
            "2001:db8::1".parse().ok()
        );
        assert_eq!(question("-").expect("right"), Question::default());
        for wrong in ["", "from 192.0.2.1", "x", "192.0.2.1 192.0.2.2", "192.0.2.1 mark", "- iif"] {
            assert!(question(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_list_is_read_line_by_line_and_an_error_names_the_line() {
        let addrs = read_addrs(&b"192.0.2.1\n\n  2001:db8::1 # host\n"[..]).expect("right");
        assert_eq!(addrs.len(), 2);
        let error = read_addrs(&b"192.0.2.1\n192.0.2\n"[..]).expect_err("wrong");
        assert_eq!(error.to_string(), "standard input, line 2: `192.0.2` is not an address");
    }
}
