//! Compares Ferroute with its peers in one run; built and started by `scripts/bench`.
//!
//! Every section has one entrant that is Ferroute, and others. They run in turn, round after round. The
//! results are medians over the rounds, and the median of each round's ratio: if the machine is slower for
//! a while, this affects all of them. The row of an entrant that could not run states that; a figure of an
//! earlier run is never shown.
//!
//! The table goes to standard output, JSON and Markdown into a directory.

#![forbid(unsafe_code)]

mod built;
mod connections;
mod dpdk;
mod fib;
mod host;
mod offload;
mod pipeline;
mod rounds;
mod table;
mod veth;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use built::Built;
use rounds::Section;
use table::Results;

#[derive(Debug, Parser)]
#[command(about = "Measures Ferroute beside its peers")]
struct Args {
    /// Fewer and shorter rounds: under five minutes, to check that everything runs
    #[arg(long)]
    quick: bool,
    /// Rounds of every section
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Output of `cargo build --message-format=json`
    #[arg(long, value_name = "FILE")]
    built: PathBuf,
    /// Directory for JSON and Markdown
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these sections
    sections: Vec<SectionName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SectionName {
    /// Longest-prefix match, against dpdk-test-fib
    Fib,
    /// The pipeline in memory, against testpmd on net_null
    Pipeline,
    /// End to end, against bare reflectors, testpmd, XDP and the kernel
    Veth,
    /// Flow offload on veth, against XDP, testpmd and the kernel
    Offload,
    /// Rulesets that track connections: short ones against the kernel, and a million that are carried
    Connections,
}

impl SectionName {
    /// A quick run has five minutes for everything; building tables and labs takes long.
    fn rounds(self, quick: bool) -> usize {
        match (self, quick) {
            (_, false) => 7,
            (SectionName::Fib, true) => 1,
            (SectionName::Connections | SectionName::Offload, true) => 1,
            (_, true) => 2,
        }
    }
}

/// Context of every section.
#[derive(Debug)]
pub struct Plan {
    quick: bool,
    built: Built,
    /// For files that the entrants read.
    dir: PathBuf,
    /// Set when the run is to end.
    interrupted: Arc<AtomicBool>,
}

impl Plan {
    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether it ran to its end and Ferroute itself could be measured.
fn run(args: &Args) -> Result<bool> {
    let interrupted = catch_signals()?;
    let built = Built::read(&args.built)?;
    fs::create_dir_all(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let plan = Plan { quick: args.quick, built, dir: args.out.clone(), interrupted };
    let mut results = Results::begin(args.quick);
    let names = match args.sections.as_slice() {
        [] => SectionName::value_variants(),
        some => some,
    };
    let mut complete = true;
    for name in names {
        if plan.is_interrupted() {
            break;
        }
        let sections: Vec<Section<'_>> = match name {
            SectionName::Fib => fib::sections(&plan)?,
            SectionName::Pipeline => vec![pipeline::section(&plan), pipeline::workers(&plan)],
            SectionName::Veth => vec![veth::section(&plan)],
            SectionName::Offload => offload::sections(&plan),
            SectionName::Connections => {
                vec![connections::short(&plan), connections::carried(&plan)]
            }
        };
        let rounds = args.rounds.map_or_else(|| name.rounds(args.quick), usize::from);
        for section in sections {
            let result = section.run(rounds, &|| plan.is_interrupted());
            complete &= result.has_subject();
            results.sections.push(result);
        }
    }
    results.interrupted = plan.is_interrupted();
    results.end();
    print!("{}", results.text());
    let write = |name: &str, text: &str| {
        let path = args.out.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("bench.json", &(serde_json::to_string_pretty(&results)? + "\n"))?;
    write("bench.md", &results.markdown())?;
    eprintln!("bench: written to {}/bench.md and bench.json", args.out.display());
    Ok(complete && !results.interrupted)
}

/// SIGINT and SIGTERM end the run as soon as possible, with the results so far. The entrants' processes get
/// the terminal's SIGINT themselves.
fn catch_signals() -> Result<Arc<AtomicBool>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().context("blocking signals")?;
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            eprintln!("bench: ending with the results so far");
            set.store(true, Ordering::Relaxed);
        }
    });
    Ok(flag)
}
