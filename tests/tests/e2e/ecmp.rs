//! Routers side by side, with BGP and BFD, in the small form of `scripts/scale-out`: one fails, returns, and is taken
//! out of service. The script measures and checks, and repeats what exceeds its limits, because something else on the machine
//! may have been the cause; how much is lost exactly, and full tables, are left out.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute;
use ferroute_tests::lab::repository;

fn scale_out(daemon: &str) -> Result<()> {
    let output = Command::new(repository().join("scripts/scale-out"))
        .args(["--check", "--routers", "2", "--routes", "1000", "--daemon", daemon])
        .env("FERROUTE_LAB_PREFIX", format!("frt-{}-{daemon}-", std::process::id()))
        .env("FERROUTE_BIN", ferroute::binary())
        .output()
        .context("starting scripts/scale-out")?;
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    ensure!(output.status.success(), "{}\n{}", text(&output.stderr), text(&output.stdout));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn leafs_with_frr_do_without_a_router_that_fails() -> Result<()> {
    scale_out("frr")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn leafs_with_bird_do_without_a_router_that_fails() -> Result<()> {
    scale_out("bird")
}
