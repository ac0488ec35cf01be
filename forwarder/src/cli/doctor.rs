//! `doctor`: what prevents forwarding, and what to do about it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::output::{Colour, coloured};
use super::{Global, Usage};
use crate::control::config::RunFlags;
use crate::control::config::interfaces::Interfaces;
use crate::control::config::source::Source;
use crate::control::doctor::{Finding, Level, examine, ipsec_of_file};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check this interface, or those that match a pattern such as 'eth*'; repeat for more [default: the
    /// daemon's ports, or all that are up].
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Check also the IPsec of this file, which is to be given to `run`.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the checks and prints the findings; fails if something does not work.
pub fn doctor(global: &Global, args: &DoctorArgs) -> Result<ExitCode> {
    let interfaces = Interfaces::parse(&args.interfaces).map_err(Usage)?;
    let source = args.config.as_ref().map(|path| {
        let any = RunFlags { interfaces: vec!["*".to_owned()], ..RunFlags::default() };
        Source::new(path, any).read()
    });
    let options = source.transpose()?;
    let mut findings = examine(&interfaces, &global.control());
    if let Some(options) = &options {
        findings.extend(ipsec_of_file(options));
    }
    let output = global.output();
    if output.json {
        output.json(&findings)?;
    } else {
        output.text(&findings.iter().map(line).collect::<String>())?;
    }
    let fails = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn line(finding: &Finding) -> String {
    let Finding { check, port, level, message, advice } = finding;
    let colour = match level {
        Level::Ok => Colour::Good,
        Level::Warn => Colour::Odd,
        Level::Fail => Colour::Bad,
    };
    // Padded before it is coloured: escape sequences have no width.
    let level = coloured(&format!("{:<4}", level.name()), colour);
    let subject = port.as_ref().map_or(check.clone(), |port| format!("{port} {check}"));
    let advice = advice.as_ref().map_or(String::new(), |text| format!("     do: {text}\n"));
    format!("{level} {subject}: {message}\n{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_level_subject_and_what_to_do() {
        let finding = Finding {
            check: "link".into(),
            port: Some("eth0".into()),
            level: Level::Fail,
            message: "down".into(),
            advice: Some("ip link set dev eth0 up".into()),
        };
        assert_eq!(line(&finding), "fail eth0 link: down\n     do: ip link set dev eth0 up\n");
        let fine = Finding { port: None, level: Level::Ok, advice: None, ..finding };
        assert_eq!(line(&fine), "ok   link: down\n");
    }
}
