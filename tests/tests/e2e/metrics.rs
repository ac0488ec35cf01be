//! `run --metrics`: scrapes have the counters of `stat`, `drops` and `rules`, and clients that are slow, many or hostile change
//! nothing for forwarding.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute::by_kernel;
use ferroute_tests::freeze::StoppedThread;
use ferroute_tests::http::{self, Answer, samples};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};
use serde_json::Value;

/// Where it listens by default.
const ADDR: &str = "127.0.0.1:9112";
/// Shortest time between two readings.
const READING_INTERVAL: Duration = Duration::from_millis(500);
/// How soon a scrape must be answered beside hostile clients.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// The type of OpenMetrics, as Prometheus asks for it.
const OPENMETRICS: &str =
    "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

fn scrape(lab: &Lab) -> Result<BTreeMap<String, f64>> {
    let answer = http::get(&lab.router, ADDR, "/metrics", &[])?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(samples(&answer.body))
}

/// A daemon whose metrics are at a unix socket, and the socket's path. Tests outside of its namespace can connect.
fn at_unix_socket(lab: &Lab) -> Result<(Ferroute, tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("metrics.sock");
    let address = format!("unix:{}", path.display());
    Ok((Ferroute::start_with(lab, &["--metrics", &address])?, dir, path))
}

/// Fails unless a scrape is answered soon.
fn is_answered(path: &Path) -> Result<()> {
    let begun = Instant::now();
    let answer = http::get_unix(path, "/metrics", &[OPENMETRICS])?;
    ensure!(answer.status == 200 && answer.body.ends_with("# EOF\n"), "{answer:?}");
    ensure!(begun.elapsed() < ANSWER_TIME_MAX, "an answer took {:?}", begun.elapsed());
    Ok(())
}

fn of(samples: &BTreeMap<String, f64>, name: &str) -> Result<u64> {
    let value = samples.get(name).with_context(|| format!("no {name} in {samples:?}"))?;
    Ok(*value as u64)
}

/// A table of `stat -j` as names and numbers.
fn counters(table: &Value) -> impl Iterator<Item = (&str, u64)> {
    let entries = table.as_object().into_iter().flatten();
    entries.filter_map(|(name, count)| Some((name.as_str(), count.as_u64()?)))
}

/// Names of metrics by what `nstat` calls them.
fn mib_names(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# HELP ferroute_mib_"));
    let name = |line: &str| {
        let (metric, help) = line.split_once(' ')?;
        Some((help.split_once(" of ")?.0.to_owned(), format!("ferroute_mib_{metric}")))
    };
    lines.filter_map(name).collect()
}

/// Compares a scrape with what the commands print.
fn compare(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    let stat = ferroute.json(&["stat"])?;
    let drops = ferroute.json(&["drops", "-z"])?;
    let latency = ferroute.json(&["latency"])?;
    // One that was made after the commands.
    thread::sleep(READING_INTERVAL + Duration::from_millis(50));
    let text = http::get(&lab.router, ADDR, "/metrics", &[])?.body;
    let samples = samples(&text);
    ensure!(stat["mib"] == ferroute.json(&["stat"])?["mib"], "packets arrived meanwhile");
    let mut compared = 0;
    let mut equal = |name: &str, count: u64| -> Result<()> {
        let found = of(&samples, name)?;
        ensure!(found == count, "{name} is {found}, and the command prints {count}");
        compared += 1;
        Ok(())
    };
    let names = mib_names(&text);
    for (name, count) in counters(&stat["mib"]) {
        equal(names.get(name).with_context(|| format!("no {name}"))?, count)?;
    }
    for (list, metric) in [("drops", "ferroute_drops_total"), ("punts", "ferroute_punts_total")] {
        for count in drops[list].as_array().context("a list")? {
            let reason = count["reason"].as_str().context("a reason")?;
            let count = count["count"].as_u64().context("a count")?;
            equal(&format!("{metric}{{reason=\"{reason}\"}}"), count)?;
        }
    }
    for port in stat["ports"].as_array().context("ports")? {
        let ifname = port["ifname"].as_str().context("a name")?;
        let counted = |name: &str| port["counters"][name].as_u64().context("a counter");
        for (metric, name) in [
            ("receive_packets", "rx_packets"),
            ("receive_bytes", "rx_bytes"),
            ("transmit_packets", "tx_packets"),
            ("transmit_bytes", "tx_bytes"),
            ("receive_drops", "rx_dropped"),
            ("punts", "punted"),
        ] {
            equal(&format!("ferroute_port_{metric}_total{{port=\"{ifname}\"}}"), counted(name)?)?;
        }
        let missed = port["driver"]["rx_ring_full"].as_u64().context("rx_ring_full")?;
        let labels = format!("{{port=\"{ifname}\",cause=\"ring_full\"}}");
        equal(&format!("ferroute_port_missed_packets_total{labels}"), missed)?;
    }
    for worker in stat["workers"].as_array().context("workers")? {
        let received = worker["packets"]["received"].as_u64().context("received")?;
        let labels = format!("{{worker=\"{}\"}}", worker["worker"]);
        equal(&format!("ferroute_worker_receive_packets_total{labels}"), received)?;
    }
    for pair in latency["pairs"].as_array().context("pairs")? {
        let labels = format!("{{iif={},oif={}}}", pair["iif"], pair["oif"]);
        let count = pair["count"].as_u64().context("a count")?;
        equal(&format!("ferroute_latency_seconds_count{labels}"), count)?;
    }
    equal("ferroute_sent_packets_total", stat["packets"]["sent"].as_u64().context("sent")?)?;
    ensure!(compared > 100, "only {compared} were compared");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_scrape_has_the_counters_of_the_commands() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.router.run("nft add table ip fw")?;
    lab.router.run("nft add chain ip fw f { type filter hook forward priority 0 ; }")?;
    lab.router.run("nft add rule ip fw f udp dport 9 counter drop")?;
    lab.router.run("nft add rule ip fw f counter")?;
    let mut ferroute = Ferroute::start_with(&lab, &["--metrics", "--latency-sample", "1"])?;
    for to in [RIGHT4, RIGHT6] {
        ping_all(&lab.left, &format!("-c 20 -i 0.02 -W 5 {to}"))?;
    }
    // Dropped, with an ICMP error.
    let expired = ping(&lab.left, &format!("-c 3 -i 0.02 -t 1 -W 1 {RIGHT4}"))?;
    ensure!(expired.received == 0, "{expired:?}");
    // Another packet, such as a neighbour solicitation, may arrive in between.
    let mut last = compare(&lab, &ferroute);
    ensure!(
        eventually(|| {
            last.is_ok() || {
                last = compare(&lab, &ferroute);
                last.is_ok()
            }
        }),
        "{:#}\n{}",
        last.unwrap_err(),
        ferroute.account()
    );
    let samples = scrape(&lab)?;
    ensure!(of(&samples, "ferroute_state{state=\"forwarding\"}")? == 1);
    ensure!(of(&samples, "ferroute_port_up{port=\"rt-left\"}")? == 1);

    // The counter of a rule is the sum that `rules show` prints.
    let rules = ferroute.json(&["rules", "show"])?;
    let chain = &rules[0]["chains"][0];
    let rule = chain["rules"].as_array().context("rules")?.last().context("a rule")?;
    let (handle, packets) = (&rule["handle"], rule["counters"][0]["packets"].as_u64());
    let counted = |by: &str| {
        let labels = format!("table=\"ip fw\",chain=\"f\",handle=\"{handle}\",counted_by=\"{by}\"");
        of(&samples, &format!("ferroute_rule_packets_total{{{labels}}}"))
    };
    let sum = counted("workers")? + counted("kernel")?;
    ensure!(Some(sum) == packets && sum >= 40, "{sum} and {packets:?}");
    ferroute.terminate()
}

/// Runs promtool, which scripts/setup has put into its cache.
fn promtool(args: &[&str], input: &str) -> Result<()> {
    let dir = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")));
    let path =
        cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("ferroute/promtool/promtool");
    let mut command = Command::new(&path);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().with_context(|| format!("{}: run scripts/setup", path.display()))?;
    let mut stdin = child.stdin.take().context("its input")?;
    // One that has found an error may not read on.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let is_silent = said.is_empty() || !args.contains(&"metrics");
    ensure!(output.status.success() && is_silent, "{args:?}: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn promtool_finds_nothing_in_a_scrape() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.router.run("nft add table ip fw")?;
    lab.router.run("nft add counter ip fw some")?;
    lab.router.run("nft add chain ip fw f { type filter hook forward priority 0 ; }")?;
    lab.router.run("nft add rule ip fw f ct state established counter accept")?;
    lab.router.run("nft add rule ip fw f counter name some")?;
    let _ferroute = Ferroute::start_with(&lab, &["--metrics", "--offload", "on"])?;
    ping_all(&lab.left, &format!("-c 5 -i 0.02 -W 5 {RIGHT4}"))?;
    let answer = http::get(&lab.router, ADDR, "/metrics", &[])?;
    ensure!(answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8");
    for metric in [
        "ferroute_nft_object_packets_total{",
        "ferroute_offload_flows ",
        "ferroute_conntrack_entries ",
    ] {
        ensure!(answer.body.contains(metric), "no {metric} in\n{}", answer.body);
    }
    promtool(&["check", "metrics"], &answer.body)?;
    let answer = http::get(&lab.router, ADDR, "/metrics", &[OPENMETRICS])?;
    ensure!(
        answer.header("content-type").starts_with("application/openmetrics-text; version=1.0.0")
    );
    ensure!(
        answer.body.ends_with("# EOF\n") && answer.body.contains("# TYPE ferroute_build info\n")
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_large_ruleset_has_a_bounded_number_of_series() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ruleset");
    let rules: String = (1..=1500).map(|port| format!("udp dport {port} counter\n")).collect();
    let chain = format!("type filter hook forward priority 0; policy accept;\n{rules}");
    std::fs::write(&path, format!("table ip fw {{\nchain f {{\n{chain}}}\n}}\n"))?;
    lab.router.run(&format!("nft -f {}", path.display()))?;
    let _ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    ping_all(&lab.left, &format!("-c 3 -i 0.02 -W 5 {RIGHT4}"))?;
    let samples = scrape(&lab)?;
    let of_workers = |name: &&String| {
        name.starts_with("ferroute_rule_packets_total{") && name.contains("\"workers\"")
    };
    let series = samples.keys().filter(of_workers).count();
    ensure!(series == 1000, "{series} series of rules");
    ensure!(of(&samples, "ferroute_left_out_series{of=\"rules\"}")? == 500, "{samples:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn clients_that_are_silent_slow_or_send_too_much_only_lose_their_connection() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let (mut ferroute, dir, path) = at_unix_socket(&lab)?;
    let mode = std::fs::metadata(&path)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(2))?;
    ensure!(stream.flows(50), "nothing arrives");
    is_answered(&path)?;

    // Silent ones, more than are served at a time.
    let silent: Vec<_> =
        (0..200).map(|_| UnixStream::connect(&path)).collect::<std::io::Result<_>>()?;
    is_answered(&path).context("beside silent clients")?;
    drop(silent);

    // One that sends its request octet by octet is disconnected.
    let mut slow = UnixStream::connect(&path)?;
    let begun = Instant::now();
    while slow.write_all(b"G").is_ok() {
        ensure!(begun.elapsed() < Duration::from_secs(20), "a slow client keeps its connection");
        thread::sleep(Duration::from_millis(100));
    }
    is_answered(&path)?;

    // One that sends 1 GB of a head, and one with a body of 1 GB.
    for head in [
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ",
        "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
    ] {
        let mut large = UnixStream::connect(&path)?;
        large.set_read_timeout(Some(Duration::from_secs(30)))?;
        large.write_all(head.as_bytes())?;
        let part = vec![b'x'; 1 << 20];
        let sent = (0..1000).take_while(|_| large.write_all(&part).is_ok()).count();
        ensure!(sent < 100, "{sent} MiB of a request were read");
        let mut said = Vec::new();
        // The connection is reset after the answer, because not all was read.
        let _ = large.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        ensure!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    is_answered(&path)?;

    // Ones that ask and do not read.
    let unread: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(&path)?;
            stream.write_all(http::request("/metrics", &[]).as_bytes())?;
            Ok(stream)
        })
        .collect::<std::io::Result<_>>()?;
    is_answered(&path).context("beside clients that do not read")?;
    drop(unread);

    // Nonsense.
    for text in
        ["\0\0\0\r\n\r\n", "GET\r\n\r\n", "\u{1b}[2J\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut client = UnixStream::connect(&path)?;
        client.write_all(text.as_bytes())?;
        let _ = client.read_to_end(&mut Vec::new());
    }
    is_answered(&path)?;

    let report = stream.stop();
    ensure!(report.lost() == 0, "{report:?}\n{}", ferroute.account());
    ferroute.forwarded_all_itself()?;
    ferroute.terminate()?;
    let left = std::fs::read_dir(dir.path())?.count();
    ensure!(left == 0, "{left} files are left");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_thousand_scrapes_at_once_cost_a_few_readings() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(2))?;
    ensure!(stream.flows(50), "nothing arrives");
    let readings = |samples: &BTreeMap<String, f64>| of(samples, "ferroute_metrics_readings_total");
    let before = readings(&scrape(&lab)?)?;
    let begun = Instant::now();
    let clients = (0..1000)
        .map(|_| {
            let mut client = http::connect(&lab.router, ADDR)?;
            client.write_all(http::request("/metrics", &[OPENMETRICS]).as_bytes())?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    for client in clients {
        let answer = http::receive(client)?;
        ensure!(answer.status == 200 && answer.body.ends_with("# EOF\n"), "{answer:?}");
    }
    let took = begun.elapsed();
    let more = readings(&scrape(&lab)?)? - before;
    let most = took.div_duration_f64(READING_INTERVAL).ceil() as u64 + 2;
    eprintln!("1000 scrapes took {took:?} and {more} readings");
    ensure!(more <= most, "{more} readings in {took:?}");
    let report = stream.stop();
    ensure!(report.lost() == 0, "{report:?}\n{}", ferroute.account());
    ferroute.forwarded_all_itself()?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_stalled_thread_is_seen_in_scrapes_and_does_not_delay_them() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    let pid = ferroute.pid().context("no process")?;
    for (thread, metric) in [
        ("fr-worker0", "ferroute_worker_heartbeat_age_seconds{worker=\"0\"}"),
        ("ferroute", "ferroute_control_turn_age_seconds"),
    ] {
        let age = || -> Result<f64> {
            let begun = Instant::now();
            let samples = scrape(&lab)?;
            ensure!(begun.elapsed() < ANSWER_TIME_MAX, "a scrape took {:?}", begun.elapsed());
            Ok(*samples.get(metric).with_context(|| format!("no {metric}"))?)
        };
        ensure!(eventually(|| age().is_ok_and(|age| age < 1.0)), "{thread}: {:?}", age());
        let stopped = StoppedThread::stop(pid, thread)?;
        thread::sleep(Duration::from_secs(3));
        let stalled = age()?;
        ensure!(stalled > 2.0, "{thread} is stopped, and {metric} is {stalled}");
        let samples = scrape(&lab)?;
        ensure!(of(&samples, "ferroute_forwarding")? == 0, "{samples:?}");
        ensure!(of(&samples, "ferroute_warnings")? == 1, "{samples:?}");
        ensure!(of(&samples, "ferroute_port_up{port=\"rt-left\"}")? == 1);
        drop(stopped);
        ensure!(eventually(|| age().is_ok_and(|age| age < 1.0)), "{thread}: {:?}", age());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_address_in_use_ends_the_start_and_nothing_is_left() -> Result<()> {
    let lab = Lab::up()?;
    let _held = lab.router.enter(|| Ok(TcpListener::bind(ADDR)?))?;
    let dir = tempfile::tempdir()?;
    let runtime = dir.path().join("run").to_string_lossy().into_owned();
    let args = ["-i", "rt-left", "-i", "rt-right", "--runtime-dir", &runtime, "--metrics"];
    if !by_kernel() {
        let said = Ferroute::refusal(&lab.router, &args)?;
        ensure!(said.contains("metrics: 127.0.0.1:9112 is in use; stop the program"), "{said}");
        let links = lab.router.run("ip -d link")?;
        ensure!(!links.contains("xdp") && !links.contains("ferroute0"), "{links}");
        let left: Vec<_> = std::fs::read_dir(&runtime)?.collect();
        ensure!(left.is_empty(), "{left:?}");
        let said = Ferroute::refusal(&lab.router, &[&args[..], &["192.0.2.77:9112"]].concat())?;
        ensure!(said.contains("192.0.2.77:9112") && said.contains("no interface"), "{said}");
    }
    ping_all(&lab.left, &format!("-c 3 -i 0.02 -W 5 {RIGHT4}"))?;
    let mut ferroute = Ferroute::start_with(&lab, &["--metrics", "[::1]:9113"])?;
    if !by_kernel() {
        let answer = http::get(&lab.router, "[::1]:9113", "/metrics", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn only_reading_is_possible_and_under_names_of_this_machine() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    let get = |path: &str, headers: &[&str]| -> Result<Answer> {
        http::get(&lab.router, ADDR, path, headers)
    };
    ensure!(get("/metrics", &["Host: evil.example:9112"])?.status == 421, "another name is served");
    ensure!(get("/metrics", &["Host: 127.0.0.1:9112"])?.status == 200);
    ensure!(get("/nothing", &[])?.status == 404);
    let mut client = http::connect(&lab.router, ADDR)?;
    client.write_all(b"DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let refused = http::receive(client)?;
    ensure!(refused.status == 405 && refused.header("allow") == "GET, HEAD", "{refused:?}");
    let overview = get("/api/v1/overview", &[])?;
    ensure!(overview.header("content-type") == "application/json", "{overview:?}");
    ensure!(overview.header("access-control-allow-origin").is_empty(), "{overview:?}");
    let overview: Value = serde_json::from_str(&overview.body)?;
    ensure!(
        overview["state"] == "forwarding" && overview["ports"][0]["ifname"] == "rt-left",
        "{overview}"
    );
    Ok(())
}

#[test]
#[ignore = "needs promtool and root: run by scripts/test"]
fn alert_rules_pass_their_tests() -> Result<()> {
    let path = ferroute_tests::lab::repository().join("docs/monitoring");
    let file = |name: &str| path.join(name).to_string_lossy().into_owned();
    promtool(&["check", "rules", &file("ferroute.rules.yml")], "")?;
    promtool(&["test", "rules", &file("ferroute.rules.test.yml")], "")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_page_is_self_contained_and_its_policy_strict() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start_with(&lab, &["--metrics"])?;
    let page = http::get(&lab.router, ADDR, "/", &[])?;
    ensure!(page.status == 200 && page.header("content-type") == "text/html; charset=utf-8");
    ensure!(page.body.starts_with("<!doctype html>") && page.body.ends_with("</html>\n"));
    let policy = page.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        ensure!(policy.contains(part), "{part} is not in {policy}");
    }
    ensure!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    ensure!(page.header("x-content-type-options") == "nosniff", "{page:?}");

    // What it shows: everything that its script reads is there, and rates can be made of two answers.
    let overview = || -> Result<Value> {
        let answer = http::get(&lab.router, ADDR, "/api/v1/overview", &[])?;
        Ok(serde_json::from_str(&answer.body)?)
    };
    let before = overview()?;
    ping_all(&lab.left, &format!("-c 20 -i 0.05 -W 5 {RIGHT4}"))?;
    thread::sleep(READING_INTERVAL + Duration::from_millis(50));
    let after = overview()?;
    for key in [
        "version",
        "driver",
        "state",
        "warnings",
        "workers",
        "drops",
        "punts",
        "routes",
        "neighbours",
    ] {
        ensure!(!after[key].is_null(), "no {key} in {after}");
    }
    let received = |overview: &Value| {
        overview["ports"][0]["counters"]["rx_packets"].as_u64().context("rx_packets")
    };
    ensure!(received(&after)? >= received(&before)? + 20, "{before}\n{after}");
    let number = |overview: &Value, name: &str| overview[name].as_f64().context("a number");
    ensure!(number(&after, "uptime_s")? >= number(&before, "uptime_s")? + 1.0, "{after}");
    ensure!(
        after["workers"][0]["idle_s"].is_f64() && after["ports"][0]["is_up"] == true,
        "{after}"
    );
    Ok(())
}
