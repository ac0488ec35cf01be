//! Clients of the control socket that are silent, slow, greedy or send invalid requests do not affect
//! anything else: `status` is answered, routes are followed, memory is bounded and freed.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::ferroute::by_kernel;
use ferroute_tests::freeze::StoppedThread;
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually, threads};
use serde_json::Value;

/// How soon `status` must be answered under all conditions.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// How soon a route must be followed: the longest that a forwarder may be laxer than the kernel.
const FOLLOW_TIME_MAX: Duration = Duration::from_millis(200);
/// A large table.
const ROUTES: usize = 200_000;
/// Memory that many clients may cost, in KiB: stacks, buffers and pages of 64 clients, and what the
/// allocator keeps of that.
const CROWD_KIB: u64 = 48 << 10;

/// Starts `ferroute` in a lab, unless the kernel is to forward: then there is nothing to test.
fn running() -> Result<Option<(Lab, Ferroute)>> {
    if by_kernel() {
        return Ok(None);
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    // State that is created at the first use exists from now on.
    ferroute.ask(&["status"])?;
    ferroute.ask(&["route", "show", "table", "all"])?;
    Ok(Some((lab, ferroute)))
}

/// Requests the status and fails unless the answer comes soon.
fn status(ferroute: &Ferroute) -> Result<Output> {
    let begun = Instant::now();
    let output = ferroute.command(&["status"]).output()?;
    let took = begun.elapsed();
    ensure!(took < ANSWER_TIME_MAX, "`status` took {took:?}: {output:?}");
    ensure!(!output.stdout.is_empty(), "no status: {output:?}");
    Ok(output)
}

/// As [`status`], which must also be good.
fn is_well(ferroute: &Ferroute) -> Result<()> {
    let output = status(ferroute)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Resident memory of the process, in KiB.
fn rss_kib(ferroute: &Ferroute) -> Result<u64> {
    let pid = ferroute.pid().context("no process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?)
}

/// Fails if the process has grown by more than `most` KiB since it had `before`.
fn has_grown_by_at_most(ferroute: &Ferroute, before: u64, most: u64) -> Result<()> {
    let now = rss_kib(ferroute)?;
    ensure!(now <= before + most, "{before} KiB before, {now} KiB now");
    Ok(())
}

fn connect(ferroute: &Ferroute) -> Result<UnixStream> {
    let stream = UnixStream::connect(ferroute.control())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Reads until the end.
fn rest_of(mut stream: &UnixStream) -> String {
    let mut octets = Vec::new();
    // If the server has unread input, the connection is reset after its answer.
    let _ = stream.read_to_end(&mut octets);
    String::from_utf8_lossy(&octets).into_owned()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn silent_clients_do_not_block_others() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let before = rss_kib(&ferroute)?;
    for count in [16, 64, 1000] {
        let silent: Vec<UnixStream> =
            (0..count).map(|_| connect(&ferroute)).collect::<Result<_>>()?;
        for _ in 0..3 {
            is_well(&ferroute).with_context(|| format!("beside {count} silent clients"))?;
        }
        has_grown_by_at_most(&ferroute, before, CROWD_KIB)?;
        drop(silent);
    }
    is_well(&ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_thousand_clients_at_once_that_come_and_go_leave_room() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let path = ferroute.control();
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                let end = Instant::now() + Duration::from_secs(5);
                while Instant::now() < end {
                    let some: Vec<_> = (0..125).map(|_| UnixStream::connect(&path)).collect();
                    drop(some);
                }
            })
        })
        .collect();
    let mut answers = 0;
    while crowd.iter().any(|thread| !thread.is_finished()) {
        // New clients may have taken all places since, if their requests have not arrived.
        is_well(&ferroute)?;
        answers += 1;
    }
    ensure!(answers > 0);
    is_well(&ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn clients_that_send_octet_by_octet_have_limited_time() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let mut slow: Vec<UnixStream> = (0..64).map(|_| connect(&ferroute)).collect::<Result<_>>()?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        for stream in &mut slow {
            let _ = stream.write_all(b" ");
        }
        is_well(&ferroute)?;
        thread::sleep(Duration::from_millis(200));
    }
    for stream in &slow {
        let said = rest_of(stream);
        ensure!(said.contains("longer than 5 s") || said.contains("too many clients"), "{said:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_request_that_is_too_long_costs_no_more_than_the_bound() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let before = rss_kib(&ferroute)?;
    let head = b"{\"version\":1,\"body\":{\"route_get\":{\"from\":null,\"iif\":null,\"mark\":0,\
                 \"format\":\"json\",\"addrs\":[";
    let addrs = b"\"192.0.2.1\",".repeat(6000);
    let blanks = vec![b' '; 64 << 10];
    // 52 MB of addresses; a gigabyte of nothing.
    for (head, part, octets) in [(&head[..], &addrs, 52usize << 20), (b"", &blanks, 1 << 30)] {
        let mut stream = connect(&ferroute)?;
        stream.write_all(head)?;
        let (begun, mut sent) = (Instant::now(), 0);
        while sent < octets && stream.write_all(part).is_ok() {
            sent += part.len();
        }
        ensure!(sent < 8 << 20, "{sent} octets were taken");
        let said = rest_of(&stream);
        ensure!(said.contains("longer than 1024 KiB"), "{said:?}");
        ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        is_well(&ferroute)?;
    }
    has_grown_by_at_most(&ferroute, before, 8 << 10)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn invalid_requests_get_an_error_and_affect_nothing_else() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let deep = |open: &str| format!("{{\"version\":1,\"body\":{}\n", open.repeat(150_000));
    let lines: Vec<Vec<u8>> = vec![
        b"\n".to_vec(),
        b"\xff\xfe\x00\x80\n".to_vec(),
        b"{\"version\":1,\"body\":\"\xff\"}\n".to_vec(),
        deep("[").into_bytes(),
        deep("{\"a\":").into_bytes(),
        b"{\"version\":1,\"body\":{\"latency\":{\"reset\":1e400}}}\n".to_vec(),
        format!("{{\"version\":{},\"body\":\"status\"}}\n", "9".repeat(10_000)).into_bytes(),
        b"{\"version\":-1,\"body\":\"status\"}\n".to_vec(),
        b"{\"version\":2,\"body\":\"status\"}\n".to_vec(),
        b"{\"version\":1,\"body\":{\"capture\":{\"ports\":[],\"directions\":[],\"snaplen\":4294967295,\
          \"buffer_kib\":4294967295,\"filter\":[]}}}\n"
            .to_vec(),
        b"{\"version\":1,\"body\":{\"show\":{\"object\":\"route\",\"filter\":{\"to\":{\"root\":\
          \"10.0.0.0/255\"},\"up\":false},\"format\":\"json\"}}}\n"
            .to_vec(),
    ];
    let mut stream = connect(&ferroute)?;
    for line in &lines {
        // All on one connection, and each on its own.
        for stream in [&mut stream, &mut connect(&ferroute)?] {
            stream.write_all(line)?;
            let answer = read_line(stream)?;
            let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
            ensure!(answer["body"]["error"]["message"].is_string(), "{answer}");
        }
    }
    is_well(&ferroute)
}

fn read_line(stream: &mut UnixStream) -> Result<String> {
    let mut line = Vec::new();
    let mut octet = [0];
    while stream.read(&mut octet)? == 1 && octet[0] != b'\n' {
        line.push(octet[0]);
    }
    Ok(String::from_utf8(line)?)
}

/// Lines for `ip -batch`.
fn routes() -> String {
    let mut lines = String::new();
    for n in 0..ROUTES {
        let _ = writeln!(
            lines,
            "route add 10.{}.{}.{}/32 via 198.18.2.{}",
            n >> 16,
            n >> 8 & 255,
            n & 255,
            2 + n % 3
        );
    }
    lines
}

/// Adds a blackhole for a stream repeatedly, and fails if packets still pass afterwards.
fn follows(lab: &Lab, stream: &Stream, times: usize) -> Result<()> {
    for _ in 0..times {
        ensure!(stream.flows(20), "nothing arrives");
        lab.router.run("ip route add blackhole 203.0.113.1/32")?;
        thread::sleep(FOLLOW_TIME_MAX);
        let before = stream.received();
        thread::sleep(FOLLOW_TIME_MAX);
        let passed = stream.received() - before;
        lab.router.run("ip route del blackhole 203.0.113.1/32")?;
        ensure!(passed == 0, "{passed} packets passed later than {FOLLOW_TIME_MAX:?}");
    }
    Ok(())
}

/// Requests the whole table on a connection, and reads at most a part of the answer.
fn unread(ferroute: &Ferroute, format: &str) -> Result<UnixStream> {
    let mut stream = connect(ferroute)?;
    writeln!(
        stream,
        "{{\"version\":1,\"body\":{{\"show\":{{\"object\":\"route\",\"filter\":{{\"up\":false}},\
         \"format\":\"{format}\"}}}}}}"
    )?;
    stream.read_exact(&mut [0; 64])?;
    Ok(stream)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn readers_of_a_large_table_do_not_delay_following_the_kernel() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    lab.right.run("ip addr add 203.0.113.1/32 dev lo")?;
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    lab.router.ip_batch(&["-4"], &routes())?;
    let all = || ferroute.json(&["status"]).map(|status| status["mirror"]["routes4"].as_u64());
    ensure!(eventually(|| all().is_ok_and(|routes| routes > Some(ROUTES as u64))));
    let stream = Stream::start(&lab.left, &lab.right, "203.0.113.1", Duration::from_millis(2))?;
    follows(&lab, &stream, 1)?;
    let before = rss_kib(&ferroute)?;
    // Some never read, and some read everything, repeatedly.
    let mut stuck = Vec::new();
    for format in ["json", "text"].repeat(16) {
        stuck.push(unread(&ferroute, format)?);
    }
    let (stop, stopped) = channel::<()>();
    drop(stopped);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let stop: Sender<()> = stop.clone();
                let mut command = ferroute.command(&["-j", "route", "show"]);
                command.stdout(Stdio::piped());
                scope.spawn(move || -> Result<usize> {
                    let _stop = stop;
                    let mut routes = 0;
                    for _ in 0..3 {
                        let answer: Vec<Value> = serde_json::from_slice(&command.output()?.stdout)?;
                        routes = answer.len();
                        ensure!(routes > ROUTES, "only {routes} routes");
                    }
                    Ok(routes)
                })
            })
            .collect();
        follows(&lab, &stream, 5)?;
        is_well(&ferroute)?;
        for reader in readers {
            match reader.join() {
                Ok(read) => read?,
                Err(_) => bail!("a reader panicked"),
            };
        }
        Ok::<(), anyhow::Error>(())
    })?;
    has_grown_by_at_most(&ferroute, before, CROWD_KIB)?;
    drop(stuck);
    is_well(&ferroute)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn memory_of_many_answers_is_bounded_and_freed() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let before = rss_kib(&ferroute)?;
    let mut addrs = String::new();
    for n in 0..ROUTES {
        let _ = writeln!(addrs, "10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    }
    for _ in 0..3 {
        let mut command = ferroute.command(&["-j", "route", "get", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut to = child.stdin.take().context("stdin")?;
        let addrs = addrs.clone();
        let writing = thread::spawn(move || to.write_all(addrs.as_bytes()));
        let output = child.wait_with_output()?;
        writing.join().expect("the writer does not panic")?;
        let answers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        ensure!(answers.len() == ROUTES, "{} answers", answers.len());
        ensure!(answers[ROUTES - 1]["dst"] == "10.3.13.63", "{}", answers[ROUTES - 1]);
        has_grown_by_at_most(&ferroute, before, 8 << 10)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn clients_that_read_no_answer_are_disconnected_for_others() -> Result<()> {
    let Some((lab, ferroute)) = running()? else { return Ok(()) };
    lab.router.ip_batch(&["-4"], &routes())?;
    let all = || ferroute.json(&["status"]).map(|status| status["mirror"]["routes4"].as_u64());
    ensure!(eventually(|| all().is_ok_and(|routes| routes > Some(ROUTES as u64))));
    let before = rss_kib(&ferroute)?;
    let _stuck: Vec<UnixStream> =
        (0..64).map(|_| unread(&ferroute, "json")).collect::<Result<_>>()?;
    thread::sleep(ANSWER_TIME_MAX);
    for _ in 0..10 {
        is_well(&ferroute)?;
    }
    let routes = ferroute.json(&["route", "show"])?;
    ensure!(routes.as_array().is_some_and(|routes| routes.len() > ROUTES), "not all routes");
    has_grown_by_at_most(&ferroute, before, CROWD_KIB)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn without_descriptors_clients_are_served_by_turns() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let pid = ferroute.pid().context("no process")?;
    let open = || Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    // Room for three clients.
    let limit = open()? + 3;
    let set = Command::new("prlimit")
        .args([format!("--pid={pid}"), format!("--nofile={limit}")])
        .status()?;
    ensure!(set.success(), "prlimit: {set}");
    let silent: Vec<UnixStream> = (0..20).map(|_| connect(&ferroute)).collect::<Result<_>>()?;
    for _ in 0..10 {
        // The firewall cannot be read then, so the kernel forwards.
        status(&ferroute)?;
    }
    let used = cpu_ticks(pid)?;
    thread::sleep(Duration::from_secs(1));
    ensure!(cpu_ticks(pid)? - used < 60, "it is busy-looping: {} ticks", cpu_ticks(pid)? - used);
    drop(silent);
    ensure!(eventually(|| is_well(&ferroute).is_ok()), "{}", ferroute.said());
    Ok(())
}

/// CPU time of all threads except the workers, which poll, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in threads::read_each(pid, "stat")? {
        if !thread.name.starts_with("fr-worker") {
            let fields = thread.text.rsplit(')').next().unwrap_or_default().split_whitespace();
            sum +=
                fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        }
    }
    Ok(sum)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn status_is_answered_while_the_control_thread_is_stalled() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let stopped = StoppedThread::stop(ferroute.pid().context("no process")?, "ferroute")?;
    // However many clients wait for it.
    let waiting: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut stream = connect(&ferroute)?;
            stream.write_all(
                b"{\"version\":1,\"body\":{\"show\":{\"object\":\"neigh\",\"filter\":{\"up\":\
                  false},\"format\":\"json\"}}}\n",
            )?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_millis(1500));
    let output = status(&ferroute)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{text}");
    ensure!(text.contains("control thread: no turn for "), "{text}");
    ensure!(text.contains("port rt-left"), "{text}");
    for verb in ["stat", "drops"] {
        let begun = Instant::now();
        ferroute.ask(&[verb])?;
        ensure!(begun.elapsed() < ANSWER_TIME_MAX, "`{verb}` took {:?}", begun.elapsed());
    }
    drop(waiting);
    drop(stopped);
    ensure!(eventually(|| is_well(&ferroute).is_ok()), "{}", ferroute.said());
    ferroute.ask(&["neigh"])?;
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn status_is_answered_while_a_worker_is_stalled() -> Result<()> {
    let Some((_lab, ferroute)) = running()? else { return Ok(()) };
    let stopped = StoppedThread::stop(ferroute.pid().context("no process")?, "fr-worker0")?;
    for _ in 0..20 {
        let text = String::from_utf8_lossy(&status(&ferroute)?.stdout).into_owned();
        ensure!(text.contains("worker 0 does not answer"), "{text}");
        let begun = Instant::now();
        ferroute.ask(&["stat"])?;
        ensure!(begun.elapsed() < ANSWER_TIME_MAX, "`stat` took {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    let refused = ferroute.command(&["capture", "-c", "1"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(said.contains("worker 0 does not take the capture"), "{said}");
    ensure!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    ferroute.ask(&["route", "show"])?;
    drop(stopped);
    ensure!(eventually(|| is_well(&ferroute).is_ok()), "{}", ferroute.said());
    Ok(())
}
