//! The control protocol as programs use it: docs/API.md and its schema are true, subscriptions tell what happens, and clients
//! that misbehave disturb neither forwarding nor others. The limits of single requests: `control_clients.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::bpf::Attached;
use ferroute_tests::ferroute::by_kernel;
use ferroute_tests::freeze::StoppedThread;
use ferroute_tests::lab::repository;
use ferroute_tests::stream::Stream;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How soon `status` must be answered, whatever other clients do.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// Subscriptions at a time.
const SUBSCRIPTIONS_MAX: usize = 16;

fn running() -> Result<Option<(Lab, Ferroute)>> {
    if by_kernel() {
        return Ok(None);
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    Ok(Some((lab, ferroute)))
}

fn connect(ferroute: &Ferroute) -> Result<UnixStream> {
    let stream = UnixStream::connect(ferroute.control())?;
    stream.set_read_timeout(Some(EVENT_TIMEOUT))?;
    stream.set_write_timeout(Some(EVENT_TIMEOUT))?;
    Ok(stream)
}

/// A connection, read line by line.
struct Lines {
    reader: BufReader<UnixStream>,
    /// Every line so far, each after the name of its definition in the schema.
    seen: Vec<String>,
}

impl Lines {
    /// Sends a request.
    fn ask(ferroute: &Ferroute, body: &Value) -> Result<Lines> {
        let mut stream = connect(ferroute)?;
        let request = json!({ "version": 1, "body": body });
        writeln!(stream, "{request}")?;
        let seen = vec![format!("RequestLine\t{request}")];
        Ok(Lines { reader: BufReader::new(stream), seen })
    }

    /// Subscribes, and reads the answer.
    fn subscribe(ferroute: &Ferroute, topics: &[&str], interval_ms: u64) -> Result<Lines> {
        let body = json!({ "subscribe": { "topics": topics, "interval_ms": interval_ms } });
        let mut lines = Lines::ask(ferroute, &body)?;
        let answer = lines.next("ResponseLine")?;
        ensure!(answer["body"]["subscribe"]["topics"] == json!(topics), "{answer}");
        Ok(lines)
    }

    /// The next line, of a definition in the schema.
    fn next(&mut self, name: &str) -> Result<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the connection was closed, after {:?}", self.seen.last());
        self.seen.push(format!("{name}\t{}", line.trim_end()));
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    /// The next line of a subscription that passes.
    fn until(&mut self, what: &str, passes: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + EVENT_TIMEOUT;
        let from = self.seen.len();
        while Instant::now() < end {
            let line = self.next("SubscriptionLine")?;
            if passes(&line) {
                return Ok(line);
            }
        }
        let short = |line: &String| line.chars().take(200).collect::<String>();
        bail!("no {what} in {:#?}", self.seen[from..].iter().map(short).collect::<Vec<_>>())
    }

    /// The next event of a type that passes.
    fn event(&mut self, kind: &str, passes: impl Fn(&Value) -> bool) -> Result<Value> {
        let line =
            self.until(kind, |line| line["event"]["type"] == kind && passes(&line["event"]))?;
        Ok(line["event"].clone())
    }
}

/// Fails unless the committed schema permits all lines.
fn are_valid(lines: &[String]) -> Result<()> {
    let repository = repository();
    let mut child = Command::new(repository.join("tests/tools/validate-lines"))
        .arg(repository.join("docs/api.schema.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("tests/tools/validate-lines: scripts/setup installs what it needs")?;
    let mut to = child.stdin.take().context("stdin")?;
    let text = lines.join("\n") + "\n";
    let writing = thread::spawn(move || to.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writing.join();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Fails unless `status` says soon that all is well.
fn is_well(ferroute: &Ferroute) -> Result<()> {
    let begun = Instant::now();
    let output = ferroute.command(&["status"]).output()?;
    ensure!(begun.elapsed() < ANSWER_TIME_MAX, "`status` took {:?}", begun.elapsed());
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The blocks of docs/API.md: what follows the opening fence, and the contents.
fn blocks() -> Result<Vec<(String, String)>> {
    let page = fs::read_to_string(repository().join("docs/API.md"))?;
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text)), None) => *text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "a block has no end");
    Ok(blocks)
}

/// Fails unless everything that is documented is in an answer, with the same type. Of lists, the first element stands for all;
/// objects whose keys are names of counters may have others.
fn has_the_form(answer: &Value, documented: &Value, path: &str) -> Result<()> {
    match (answer, documented) {
        (Value::Object(answer), Value::Object(documented)) => {
            for (key, value) in documented {
                let path = format!("{path}.{key}");
                let found = answer.get(key).with_context(|| format!("{path} is missing"))?;
                has_the_form(found, value, &path)?;
            }
            Ok(())
        }
        (Value::Array(answer), Value::Array(documented)) => {
            match (answer.first(), documented.first()) {
                (Some(answer), Some(documented)) => {
                    has_the_form(answer, documented, &format!("{path}[0]"))
                }
                (None, Some(_)) => bail!("{path} is empty"),
                (_, None) => Ok(()),
            }
        }
        (answer, documented) => {
            let is_same = std::mem::discriminant(answer) == std::mem::discriminant(documented);
            ensure!(is_same, "{path}: {answer}, documented as {documented}");
            Ok(())
        }
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn requests_of_the_documentation_are_answered_as_it_says_and_as_the_schema_permits() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ferroute.toml");
    fs::write(
        &file,
        "[run]\ninterfaces = [\"rt-left\", \"rt-right\"]\nlatency_sample = 1\noffload = \"off\"\n",
    )?;
    let ferroute = Ferroute::start_in(&lab.router, &["-c", &file.to_string_lossy()])?;
    lab.router.run("nft add table inet filter")?;
    lab.router
        .run("nft add chain inet filter forward { type filter hook forward priority 0 ; }")?;
    lab.router.run("nft add rule inet filter forward tcp dport 23 counter drop")?;
    ensure!(eventually(|| ferroute
        .ask(&["rules", "show"])
        .is_ok_and(|it| it.contains("dport 23"))));
    lab.left.run("ping -c 3 -i 0.1 198.18.2.2")?;
    let mut all = Vec::new();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let blocks = blocks()?;
    for pair in blocks.windows(2) {
        let [(first, request), (second, answer)] = pair else { continue };
        if first != "json request" {
            continue;
        }
        ensure!(second == "json answer", "{request}: no answer is documented");
        let request: Value = serde_json::from_str(request).with_context(|| request.clone())?;
        let documented: Value = serde_json::from_str(answer).with_context(|| answer.clone())?;
        let mut lines = Lines::ask(&ferroute, &request["body"])?;
        let answer = lines.next("ResponseLine")?;
        has_the_form(&answer, &documented, "").with_context(|| format!("{request}: {answer}"))?;
        let body = &request["body"];
        let kind = body.as_str().or_else(|| body.as_object()?.keys().next().map(String::as_str));
        *kinds.entry(kind.context("a kind")?.to_owned()).or_default() += 1;
        all.extend(lines.seen);
    }
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(repository().join("docs/api.schema.json"))?)?;
    for kind in kinds_of_requests(&schema)? {
        ensure!(kinds.contains_key(&kind), "docs/API.md has no example of `{kind}`");
    }
    are_valid(&all)
}

/// The names of all requests in the schema.
fn kinds_of_requests(schema: &Value) -> Result<Vec<String>> {
    let variants = schema["$defs"]["Request"]["oneOf"].as_array().context("variants")?;
    let mut kinds = Vec::new();
    for variant in variants {
        let properties = variant["properties"].as_object();
        kinds.extend(properties.into_iter().flat_map(|it| it.keys().cloned()));
        let names = variant["enum"].as_array().into_iter().flatten().chain(variant.get("const"));
        kinds.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
    }
    ensure!(kinds.len() >= 15, "{kinds:?}");
    Ok(kinds)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn programs_of_the_documentation_run() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let mut programs = 0;
    for (kind, text) in blocks()? {
        let (program, file) = match kind.as_str() {
            "python" => ("python3", dir.path().join("client.py")),
            "sh" => ("bash", dir.path().join("client.sh")),
            _ => continue,
        };
        fs::write(&file, &text)?;
        let mut child = Command::new("timeout")
            .args(["20", program])
            .arg(&file)
            .env("FERROUTE_CONTROL", ferroute.control())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Those that watch see something happen, until they have seen enough.
        let begun = Instant::now();
        while child.try_wait()?.is_none() && begun.elapsed() < EVENT_TIMEOUT {
            lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
            thread::sleep(Duration::from_millis(150));
            lab.router.run("ip route del 203.0.113.0/24")?;
            thread::sleep(Duration::from_millis(150));
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{text}: {output:?}");
        ensure!(!output.stdout.is_empty(), "{text} prints nothing");
        if kind == "python" {
            ensure!(text.lines().count() <= 30, "the program is too long");
        }
        programs += 1;
    }
    ensure!(programs >= 3, "{programs} programs");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_subscription_has_the_state_then_what_happens_and_the_end() -> Result<()> {
    let Some((lab, mut ferroute)) = running()? else { return Ok(()) };
    let mut lines = Lines::subscribe(&ferroute, &["counters", "drops", "events"], 200)?;
    let first = lines.next("SubscriptionLine")?;
    ensure!(first["seq"] == 1 && first["snapshot"]["status"]["state"] == "forwarding", "{first}");
    ensure!(first["snapshot"]["counters"]["ports"][0]["ifname"] == "rt-left", "{first}");
    ensure!(first["snapshot"]["drops"]["drops"].is_array(), "{first}");
    // Tables.
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    let event = lines.event("tables", |it| it["notifications"]["routes"] != 0)?;
    ensure!(event["generation"].as_u64() > event["was"].as_u64(), "{event}");
    // One that has the next hop of another goes into the tables in place.
    lab.router.run("ip route add 203.0.114.0/24 via 198.18.2.2")?;
    lines.event("tables", |it| it["notifications"]["routes"] != 0)?;
    // A port without a carrier.
    lab.right.run("ip link set right down")?;
    lines.event("port", |it| it["ifname"] == "rt-right" && it["change"] == "down")?;
    lab.right.run("ip link set right up")?;
    lines.event("port", |it| it["ifname"] == "rt-right" && it["change"] == "up")?;
    // The ruleset, and rules that only the kernel has.
    lab.router.run("nft add table inet t")?;
    lab.router.run("nft add chain inet t f { type filter hook forward priority 0 ; }")?;
    lab.router.run("nft add rule inet t f tcp dport 23 counter drop")?;
    lines.event("ruleset", |it| it["applied"] == true)?;
    lab.router.run("tc qdisc add dev rt-left clsact")?;
    let filter = Attached::new(&lab.router, "drop tc dev rt-left ingress")?;
    ensure!(filter.is_some(), "no filter was attached");
    let event = lines.event("state", |it| it["state"] == "degraded")?;
    ensure!(
        event["why"].as_str().is_some_and(|why| why.contains("the kernel forwards")),
        "{event}"
    );
    lab.router.run("tc filter del dev rt-left ingress")?;
    lines.event("state", |it| it["state"] == "forwarding")?;
    // Drops: only reasons that have counted.
    lab.router.run("ip route add blackhole 203.0.113.9/32")?;
    thread::sleep(Duration::from_millis(300));
    let _ = lab
        .left
        .command("ping")
        .args(["-c", "2", "-i", "0.1", "-W", "1", "203.0.113.9"])
        .output()?;
    let change = lines.until("drops", |line| line.get("drops").is_some())?;
    let rows = change["drops"]["drops"].as_array().context("drops")?;
    ensure!(!rows.is_empty() && rows.iter().all(|row| row["new"].as_u64() > Some(0)), "{change}");
    lines.until("counters", |line| line.get("counters").is_some())?;
    // The end, and nothing after it.
    ferroute.terminate()?;
    lines.event("state", |it| it["state"] == "stopping")?;
    lines.until("end", |line| line.get("end").is_some())?;
    ensure!(lines.reader.read_to_end(&mut Vec::new())? == 0, "something follows the end");
    let numbers: Vec<u64> = lines.seen[2..]
        .iter()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line.split_once('\t')?.1).ok()?["seq"].as_u64()
        })
        .collect();
    ensure!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
    are_valid(&lines.seen)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn stalls_of_the_control_thread_and_of_a_worker_are_told() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let pid = ferroute.pid().context("no process")?;
    let mut lines = Lines::subscribe(&ferroute, &["workers"], 1000)?;
    let stopped = StoppedThread::stop(pid, "ferroute")?;
    lines.event("control_thread", |it| it["stalled"] == true)?;
    drop(stopped);
    lines.event("control_thread", |it| it["stalled"] == false)?;
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    lines.event("worker", |it| it["worker"] == 0 && it["stalled"] == true)?;
    drop(stopped);
    lines.event("worker", |it| it["worker"] == 0 && it["stalled"] == false)?;
    are_valid(&lines.seen)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn counters_do_not_wait_for_a_worker_that_has_no_turn() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let pid = ferroute.pid().context("no process")?;
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    let polls = |it: &Value| it["workers"][0]["polling"]["polls"].as_u64();
    let mut all = Vec::new();
    // `stat` waits for the worker, and says that it is silent.
    let mut stat = Lines::ask(&ferroute, &json!("stat"))?;
    let stat = stat.next("ResponseLine")?["body"]["stat"].clone();
    ensure!(stat["workers"][0]["silent"] == true, "{stat}");
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let mut lines = Lines::ask(&ferroute, &json!("counters"))?;
        let answer = lines.next("ResponseLine")?["body"]["counters"].clone();
        fastest = fastest.min(begun.elapsed());
        let worker = &answer["workers"][0];
        ensure!(worker["silent"].is_null() && worker["packets"]["received"].is_u64(), "{worker}");
        ensure!(polls(&answer).is_some() && polls(&answer) == polls(&stat), "{worker}");
        ensure!(answer["ports"][0]["driver"] == json!({}), "{answer}");
        all.extend(lines.seen);
    }
    // The property under test: `stat` takes 200 ms, the best of five must not.
    ensure!(fastest < Duration::from_millis(200), "{fastest:?}");
    let top = ferroute.json(&["top", "--batch", "1", "-i", "0.3", "--flows", "0"])?;
    let worker = &top["workers"][0];
    ensure!(worker["silent"] == true && worker["busy"].is_null(), "{top}");
    ensure!(top["packets"]["incomplete"] == false, "{top}");
    let mut lines = Lines::subscribe(&ferroute, &["counters"], 100)?;
    lines.until("counters", |it| polls(&it["counters"]) == polls(&stat))?;
    all.extend(lines.seen);
    drop(stopped);
    are_valid(&all)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_slow_subscriber_loses_events_which_are_counted() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ferroute.toml");
    fs::write(&file, "[run]\ninterfaces = [\"rt-left\", \"rt-right\"]\n")?;
    let file_name = file.to_string_lossy().into_owned();
    let ferroute = Ferroute::start_in(&lab.router, &["-c", &file_name])?;
    let mut slow = Lines::subscribe(&ferroute, &["config"], 1000)?;
    slow.next("SubscriptionLine")?;
    let stream = Stream::start(&lab.left, &lab.right, "198.18.2.2", Duration::from_millis(2))?;
    ensure!(stream.flows(20), "nothing arrives");
    // Each refused reload is an event. They fill the buffer of the socket, and then the queue.
    fs::write(&file, "[run]\nfrobnicate = 1\n")?;
    let mut client = BufReader::new(connect(&ferroute)?);
    let reloads = 6000;
    for _ in 0..reloads {
        writeln!(client.get_mut(), "{{\"version\":1,\"body\":\"reload\"}}")?;
        let mut answer = String::new();
        client.read_line(&mut answer)?;
        ensure!(answer.contains("frobnicate"), "{answer}");
    }
    is_well(&ferroute)?;
    let (mut events, mut lost) = (0, 0);
    while events + lost < reloads {
        let line = slow.next("SubscriptionLine")?;
        events += u64::from(line["event"]["type"] == "reload");
        lost += line["lost"].as_u64().unwrap_or(0);
    }
    ensure!(lost > 0 && events >= 1024 && events + lost == reloads, "{events} and {lost} lost");
    let report = stream.stop();
    ensure!(report.lost() == 0, "forwarding was disturbed: {report:?}");
    are_valid(&slow.seen)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn clients_that_misbehave_disturb_neither_forwarding_nor_others() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    let mut watching = Lines::subscribe(&ferroute, &["counters"], 100)?;
    let stream = Stream::start(&lab.left, &lab.right, "198.18.2.2", Duration::from_millis(2))?;
    ensure!(stream.flows(20), "nothing arrives");
    // Subscribers that stop reading: all places but the one above.
    let stuck: Vec<Lines> = (1..SUBSCRIPTIONS_MAX)
        .map(|_| Lines::subscribe(&ferroute, &["counters"], 100))
        .collect::<Result<_>>()?;
    let body = json!({ "subscribe": { "topics": ["events"] } });
    let refused = Lines::ask(&ferroute, &body)?.next("ResponseLine")?;
    let message = refused["body"]["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("16 subscriptions are running"), "{refused}");
    // Clients that send nothing, a gigabyte, and an octet now and then.
    let silent: Vec<UnixStream> = (0..1000).map(|_| connect(&ferroute)).collect::<Result<_>>()?;
    let mut large = connect(&ferroute)?;
    let block = vec![b' '; 64 << 10];
    let taken = (0..1 << 14).take_while(|_| large.write_all(&block).is_ok()).count();
    ensure!(taken < 128, "{taken} blocks of 64 KiB were taken");
    let mut trickle = connect(&ferroute)?;
    let begun = Instant::now();
    let mut ticks = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        let _ = trickle.write_all(b" ");
        is_well(&ferroute)?;
        watching.until("counters", |line| line.get("counters").is_some())?;
        ticks += 1;
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(ticks > 8, "{ticks} lines in 8 s");
    let mut said = String::new();
    let _ = trickle.read_to_string(&mut said);
    ensure!(said.contains("longer than 5 s") || said.contains("too many clients"), "{said:?}");
    // Those that do not read are disconnected, and their places are free again.
    drop(silent);
    let subscribes = || Lines::subscribe(&ferroute, &["events"], 1000).is_ok();
    let begun = Instant::now();
    while !subscribes() {
        ensure!(begun.elapsed() < Duration::from_secs(120), "no place for a subscription");
        watching.until("counters", |line| line.get("counters").is_some())?;
        thread::sleep(Duration::from_millis(100));
    }
    drop(stuck);
    let report = stream.stop();
    ensure!(report.lost() == 0, "forwarding was disturbed: {report:?}");
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_subscriber_that_has_closed_its_writing_side_still_reads() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    let mut lines = Lines::subscribe(&ferroute, &["tables"], 1000)?;
    lines.reader.get_ref().shutdown(std::net::Shutdown::Write)?;
    lines.next("SubscriptionLine")?;
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    lines.event("tables", |_| true)?;
    // A client that is gone leaves its place.
    drop(lines);
    let mut places = Vec::new();
    ensure!(eventually(|| {
        let next = Lines::subscribe(&ferroute, &["tables"], 1000);
        places.extend(next.ok());
        places.len() == SUBSCRIPTIONS_MAX
    }));
    is_well(&ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn invalid_subscriptions_are_refused_with_what_is_wrong() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    for (request, expected) in [
        (json!({ "topics": [] }), "no topics"),
        (json!({ "topics": ["drops"], "interval_ms": 99 }), "must be 100 to 60000"),
        (json!({ "topics": ["drops"], "interval_ms": 60_001 }), "must be 100 to 60000"),
        (json!({ "topics": ["frobnicate"] }), "unknown variant `frobnicate`"),
        (json!({}), "missing field `topics`"),
    ] {
        let mut lines = Lines::ask(&ferroute, &json!({ "subscribe": request }))?;
        let answer = lines.next("ResponseLine")?;
        let message = answer["body"]["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(expected), "{request}: {answer}");
    }
    is_well(&ferroute)
}

/// `ferroute monitor` with its standard output.
fn monitor(
    ferroute: &Ferroute,
    args: &[&str],
) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let mut command = ferroute.command(&[&["monitor"], args].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().context("stdout")?);
    Ok((child, output))
}

/// Reads until a line passes.
fn line_with(output: &mut impl BufRead, word: &str) -> Result<String> {
    let mut all = String::new();
    loop {
        let mut line = String::new();
        ensure!(output.read_line(&mut line)? > 0, "no {word} in {all}");
        if line.contains(word) {
            return Ok(line);
        }
        all += &line;
    }
}

/// Waits for the end. Returns the exit code and standard error.
fn ended(mut child: Child) -> Result<(Option<i32>, String)> {
    ensure!(eventually(|| matches!(child.try_wait(), Ok(Some(_)))), "it does not end");
    let output = child.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn monitor_prints_events_and_ends_as_commands_do() -> Result<()> {
    let Some((lab, mut ferroute)) = running()? else { return Ok(()) };
    let (all, mut text) = monitor(&ferroute, &["all", "--tshort"])?;
    let (json, mut objects) = monitor(&ferroute, &["-j", "tables"])?;
    let (broken, pipe) = monitor(&ferroute, &["tables"])?;
    let first: Value = serde_json::from_str(&line_with(&mut objects, "snapshot")?)?;
    ensure!(first["snapshot"]["status"]["state"] == "forwarding", "{first}");
    drop(pipe);
    thread::sleep(Duration::from_millis(500));
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    let line = line_with(&mut text, "routes (1 changed)")?;
    ensure!(line.starts_with("[20") && line.contains("[TABLES]tables: "), "{line}");
    let event: Value = serde_json::from_str(&line_with(&mut objects, "\"type\":\"tables\"")?)?;
    ensure!(event["event"]["type"] == "tables", "{event}");
    ensure!(ended(broken)? == (Some(0), stderr_of_a_good_start()), "a closed pipe");
    // Ctrl-C.
    kill(Pid::from_raw(json.id() as i32), Signal::SIGINT)?;
    ensure!(ended(json)?.0 == Some(0), "after SIGINT");
    lab.right.run("ip link set right down")?;
    let line = line_with(&mut text, "[PORT]")?;
    ensure!(line.contains("interface rt-right is down"), "{line}");
    // The daemon ends.
    ferroute.terminate()?;
    line_with(&mut text, "stopping")?;
    let (code, said) = ended(all)?;
    ensure!(code == Some(1) && said.contains("the daemon has ended"), "{code:?}: {said}");
    let output = ferroute.command(&["monitor"]).output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("no ferroute runs here"),
        "{output:?}"
    );
    Ok(())
}

fn stderr_of_a_good_start() -> String {
    "ferroute: forwarding, ports: rt-left forwarding, rt-right forwarding\n".to_owned()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn monitor_says_what_to_do_about_an_older_daemon_and_waits_for_the_next() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let old = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        BufReader::new(stream.try_clone()?).read_line(&mut String::new())?;
        let message = "not a request: unknown variant `subscribe`, expected one of `status`";
        writeln!(
            stream,
            "{}",
            json!({ "version": 1, "body": { "error": { "message": message } } })
        )?;
        Ok(())
    });
    let control = path.to_string_lossy().into_owned();
    let output = ferroute.command(&["--control", &control, "monitor"]).output()?;
    old.join().expect("it does not panic")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("restart it"), "{said}");
    fs::remove_file(&path)?;
    // Errors that do not pass end it, although it is to connect again.
    let long = format!("/{}", "x".repeat(200));
    let datagrams = dir.path().join("datagrams").to_string_lossy().into_owned();
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&datagrams)?;
    for wrong in [&long, &datagrams] {
        let (child, _) = monitor(&ferroute, &["--control", wrong, "--reconnect", "tables"])?;
        let (code, said) = ended(child)?;
        ensure!(code == Some(1) && said.contains(wrong.as_str()), "{code:?}: {said}");
    }
    // No daemon yet, and then one.
    let (child, mut text) = monitor(&ferroute, &["--control", &control, "--reconnect", "tables"])?;
    thread::sleep(Duration::from_millis(1200));
    std::os::unix::fs::symlink(ferroute.control(), &path)?;
    let begun = Instant::now();
    let seen = thread::spawn(move || line_with(&mut text, "tables"));
    while !seen.is_finished() && begun.elapsed() < EVENT_TIMEOUT {
        lab.router.run("ip route replace 203.0.113.0/24 via 198.18.2.2")?;
        lab.router.run("ip route del 203.0.113.0/24")?;
        thread::sleep(Duration::from_millis(300));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let (code, said) = ended(child)?;
    ensure!(code == Some(0) && said.matches("no ferroute runs here").count() == 1, "{said}");
    seen.join().expect("it does not panic")?;
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_schema_that_is_printed_is_that_of_the_documentation() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let printed = ferroute.ask(&["api", "schema"])?;
    let path: &Path = &repository().join("docs/api.schema.json");
    ensure!(printed == fs::read_to_string(path)?, "ferroute api schema > docs/api.schema.json");
    Ok(())
}
