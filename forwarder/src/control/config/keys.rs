//! The keys of the `[run]` section, as one table: `config default` and `config schema` are made of it, and a reload
//! reports by it. docs/CONFIG.md describes the same keys; tests compare the table with what the parser accepts, and the
//! page with the table.

use serde_json::{Value, json};

use super::{
    BUSY_BUDGET_DEFAULT, LATENCY_SAMPLE_DEFAULT, LATENCY_SAMPLE_MAX, PORTS_MAX, QUEUES_MAX,
    RING_DEFAULT, RING_RANGE, offload, timeouts,
};

/// Values that a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number, from and to.
    Number(u32, u32),
    /// The same, a power of two.
    PowerOfTwo(u32, u32),
    /// true or false.
    Flag,
    /// The name of a file or directory.
    Path,
    /// Names and patterns of interfaces.
    Interfaces,
    /// Numbers of CPUs.
    Cpus,
    /// Where metrics are served.
    Metrics,
}

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// With a reload.
    Reload,
    /// With a reload, except in this case.
    ReloadExcept(&'static str),
    /// With a restart.
    Restart,
}

/// A key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// Its values.
    pub kind: Kind,
    /// The default in TOML; `None`: it depends on the machine, as `help` says.
    pub default: Option<&'static str>,
    /// A value for examples in TOML.
    pub example: &'static str,
    /// When a changed value takes effect.
    pub effect: Effect,
    /// What it is for.
    pub help: &'static str,
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    example: &'static str,
    effect: Effect,
    help: &'static str,
) -> Key {
    Key { name, kind, default, example, effect, help }
}

/// All keys, in the order of the documentation.
pub const KEYS: [Key; 26] = [
    key(
        "interfaces",
        Kind::Interfaces,
        None,
        r#"["eth0", "lan*"]"#,
        Effect::Reload,
        "The ports: names of interfaces, whose VLANs are included, and patterns such as \"lan*\" or \"eth[0-3]\", which \
         select all matching Ethernet interfaces that are up, also later ones. At least one is needed here or with -i.",
    ),
    key(
        "max_ports",
        Kind::Number(1, PORTS_MAX as u32),
        None,
        "12",
        Effect::Restart,
        "Maximum number of ports, for which memory is allocated. Default: 8 more than exist at the start.",
    ),
    key(
        "mode",
        Kind::Word(&["auto", "zerocopy", "copy", "generic"]),
        Some("\"auto\""),
        "\"copy\"",
        Effect::Restart,
        "How to bind to the interfaces' queues. auto: in zero-copy mode if the driver supports it.",
    ),
    key(
        "driver",
        Kind::Word(&["af_xdp", "xsk-rs"]),
        Some("\"af_xdp\""),
        "\"af_xdp\"",
        Effect::Restart,
        "AF_XDP driver of the ports. xsk-rs: on the crate of that name, if the program was built with it.",
    ),
    key(
        "poll",
        Kind::Word(&["busy", "adaptive", "interrupt"]),
        Some("\"adaptive\""),
        "\"interrupt\"",
        Effect::Restart,
        "How workers wait for frames. busy: poll always; adaptive: poll under load; interrupt: sleep whenever there are \
         none.",
    ),
    key(
        "busy_budget",
        Kind::Number(1, u16::MAX as u32),
        Some("64"),
        "8",
        Effect::Restart,
        "Packets that the kernel takes from a queue per poll; with poll = \"busy\" only.",
    ),
    key(
        "cpus",
        Kind::Cpus,
        None,
        "\"0-3,5\"",
        Effect::Restart,
        "CPUs for the workers, one each: \"0-3,5\" or [0, 1]. Default: all that the process may use.",
    ),
    key(
        "queues",
        Kind::Number(1, QUEUES_MAX),
        None,
        "2",
        Effect::Restart,
        "Serve the first N RX queues of each port, which must have no others, or get no packets on them. Default: all.",
    ),
    key(
        "pin_irqs",
        Kind::Flag,
        Some("false"),
        "true",
        Effect::Restart,
        "Move the interrupt of each queue to its worker's CPU; needs root.",
    ),
    key(
        "rx_ring",
        Kind::PowerOfTwo(*RING_RANGE.start(), *RING_RANGE.end()),
        Some("2048"),
        "512",
        Effect::Restart,
        "Descriptors of the RX and fill rings of a socket, a power of two.",
    ),
    key(
        "tx_ring",
        Kind::PowerOfTwo(*RING_RANGE.start(), *RING_RANGE.end()),
        Some("2048"),
        "512",
        Effect::Restart,
        "Descriptors of the TX and completion rings of a socket, a power of two.",
    ),
    key(
        "latency_sample",
        Kind::Number(0, LATENCY_SAMPLE_MAX),
        Some("64"),
        "16",
        Effect::ReloadExcept("from or to 0"),
        "Measure how long one in N frames stays in userspace, for `ferroute latency`. 0: none; 1: all.",
    ),
    key(
        "offload",
        Kind::Word(&["auto", "on", "off"]),
        Some("\"auto\""),
        "\"off\"",
        Effect::ReloadExcept("if it was off at the start"),
        "Have the XDP program forward the packets of busy flows by itself. auto: of flows that arrive on a port without \
         zero-copy; on: of all ports; off: of none.",
    ),
    key(
        "offload_threshold",
        Kind::Number(1, u16::MAX as u32),
        Some("64"),
        "16",
        Effect::Reload,
        "Offload a flow when N packets of it were forwarded within 8 seconds.",
    ),
    key(
        "offload_flows",
        Kind::Number(*offload::FLOWS_RANGE.start(), *offload::FLOWS_RANGE.end()),
        Some("262144"),
        "65536",
        Effect::Restart,
        "Offload at most N flows, each of which is one direction; 1000 take 0.2 MB.",
    ),
    key(
        "worker_timeout_ms",
        Kind::Number(*timeouts::WORKER_MS.start(), *timeouts::WORKER_MS.end()),
        Some("250"),
        "500",
        Effect::Reload,
        "Leave a worker's queues to the kernel when its last heartbeat is older than this many milliseconds.",
    ),
    key(
        "control_timeout_ms",
        Kind::Number(*timeouts::CONTROL_MS.start(), *timeouts::CONTROL_MS.end()),
        Some("1000"),
        "2000",
        Effect::Reload,
        "Leave everything to the kernel when the last heartbeat of the control thread is older than this.",
    ),
    key(
        "account",
        Kind::Flag,
        Some("false"),
        "true",
        Effect::Restart,
        "Time every turn of the workers, for `ferroute stat -j`; for benchmarks.",
    ),
    key(
        "ignore_firewall",
        Kind::Flag,
        Some("false"),
        "true",
        Effect::Restart,
        "Start even if a firewall would be bypassed; IPsec policies are ignored, too.",
    ),
    key(
        "no_sandbox",
        Kind::Flag,
        Some("false"),
        "true",
        Effect::Restart,
        "Neither filter the system calls of the process by seccomp nor protect files from it by Landlock.",
    ),
    key(
        "metrics",
        Kind::Metrics,
        None,
        "\"127.0.0.1:9112\"",
        Effect::Restart,
        "Serve metrics for Prometheus and a page with live figures over HTTP, at \"ADDR:PORT\" or \"unix:PATH\". Default: \
         nowhere.",
    ),
    key(
        "log_level",
        Kind::Word(&["error", "warn", "info", "debug"]),
        Some("\"info\""),
        "\"debug\"",
        Effect::Reload,
        "Which messages are written: those of this severity, and more severe ones. debug: also each event of `ferroute \
         monitor`.",
    ),
    key(
        "log_format",
        Kind::Word(&["auto", "text", "json"]),
        Some("\"auto\""),
        "\"json\"",
        Effect::Restart,
        "How messages are written to standard error. auto: as entries with fields if it is the journal, as text otherwise; \
         json: an object on a line each.",
    ),
    key(
        "runtime_dir",
        Kind::Path,
        Some("\"/run/ferroute\""),
        "\"/run/ferroute-lan\"",
        Effect::Restart,
        "Runtime directory, accessible only to the daemon's user. RUNTIME_DIRECTORY, which systemd sets, changes the \
         default.",
    ),
    key(
        "state_dir",
        Kind::Path,
        Some("\"/var/lib/ferroute\""),
        "\"/var/lib/ferroute-lan\"",
        Effect::Restart,
        "State directory, accessible only to the daemon's user: sequence numbers of IPsec SAs with keys in the file. \
         STATE_DIRECTORY, which systemd sets, changes the default.",
    ),
    key(
        "control",
        Kind::Path,
        None,
        "\"/run/ferroute/control.sock\"",
        Effect::Restart,
        "Control socket. Default: control.sock in the runtime directory.",
    ),
];

const _: () =
    assert!(RING_DEFAULT == 2048 && LATENCY_SAMPLE_DEFAULT == 64 && BUSY_BUDGET_DEFAULT == 64);
const _: () = assert!(offload::THRESHOLD_DEFAULT == 64 && offload::FLOWS_DEFAULT == 262_144);

/// Longest line of a comment, without `# `.
const WIDTH: usize = 98;

/// A file that has all keys with their defaults, each after a comment.
pub fn default_file() -> String {
    let mut text = String::from(
        "# Configuration of Ferroute, for `ferroute run --config FILE`. `ferroute config check FILE` checks\n\
         # it, and `ferroute config show --config FILE` prints the values in effect. The values below are\n\
         # the defaults, or examples where the default depends on the machine. After a change:\n\
         # `ferroute reload`.\n\
         \n[run]\n",
    );
    for key in &KEYS {
        let effect = match key.effect {
            Effect::Reload => "Reload applies it.".to_owned(),
            Effect::ReloadExcept(case) => format!("Reload applies it; {case}, a restart."),
            Effect::Restart => "Needs a restart.".to_owned(),
        };
        text.push('\n');
        for line in wrapped(&format!("{} {effect}", key.help)) {
            text += &format!("# {line}\n");
        }
        text += &format!("#{} = {}\n", key.name, key.default.unwrap_or(key.example));
    }
    text
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < WIDTH => {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A JSON schema (draft 2020-12) of the file, for editors. The sections of `replay` are not described further.
pub fn schema() -> Value {
    let properties = KEYS.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let other = |what: &str| json!({ "type": "object", "description": what });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of Ferroute",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "run": {
                "type": "object",
                "description": "Options of `ferroute run`.",
                "additionalProperties": false,
                "properties": Value::Object(properties),
            },
            "replay": other("The network of `ferroute replay`."),
            "xfrm": other("IPsec policies and security associations of `ferroute replay`."),
        },
    })
}

fn property(key: &Key) -> Value {
    let mut property = match key.kind {
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Number(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::PowerOfTwo(min, max) => {
            let powers: Vec<u32> =
                (0..32).map(|n| 1 << n).filter(|n| (min..=max).contains(n)).collect();
            json!({ "enum": powers })
        }
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Metrics => json!({ "type": "string", "pattern": "^(unix:.+|.+:[0-9]+)$" }),
        Kind::Interfaces => {
            json!({ "type": "array", "items": { "type": "string", "minLength": 1 }, "uniqueItems": true })
        }
        Kind::Cpus => json!({ "anyOf": [
            { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$" },
            { "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1, "uniqueItems": true },
        ] }),
    };
    property["description"] = json!(key.help);
    // The defaults are words, numbers and flags, which TOML writes as JSON does.
    if let Some(default) = key.default.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        property["default"] = default;
    }
    property
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::config::{Config, RunFlags, RunOptions};

    fn parse(text: &str) -> Result<Option<crate::control::config::RunSection>, String> {
        let config = Config::parse(text, Path::new("k.toml"));
        config.map(|config| config.run).map_err(|error| error.to_string())
    }

    fn options(run: &str) -> RunOptions {
        let section =
            parse(&format!("[run]\n{run}")).unwrap_or_else(|error| panic!("{run}: {error}"));
        let flags = RunFlags { interfaces: vec!["x*".into()], ..RunFlags::default() };
        RunOptions::resolve(flags, section).unwrap_or_else(|error| panic!("{run}: {error}"))
    }

    #[test]
    fn the_table_has_the_keys_that_the_parser_accepts() {
        let error = parse("[run]\nx = 1\n").expect_err("is unknown");
        let (_, list) = error.split_once("expected one of ").expect("a list");
        let accepted: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(accepted, names);
    }

    #[test]
    fn the_parser_accepts_the_values_of_the_table_and_no_others() {
        for key in &KEYS {
            let accepts = |value: &str| parse(&format!("[run]\n{} = {value}\n", key.name)).is_ok();
            let (right, wrong): (Vec<String>, Vec<String>) = match key.kind {
                Kind::Word(words) => {
                    (words.iter().map(|word| format!("\"{word}\"")).collect(), vec!["\"x\"".into()])
                }
                Kind::Number(min, max) => {
                    let below = i64::from(min) - 1;
                    let above = i64::from(max) + 1;
                    (
                        [min, max].map(|n| n.to_string()).into(),
                        [below, above].map(|n| n.to_string()).into(),
                    )
                }
                Kind::PowerOfTwo(min, max) => {
                    let wrong = [min / 2, min + 1, max * 2].map(|n| n.to_string());
                    ([min, max].map(|n| n.to_string()).into(), wrong.into())
                }
                Kind::Flag => (vec!["true".into(), "false".into()], vec!["1".into()]),
                Kind::Path => (vec!["\"/x\"".into()], vec!["1".into()]),
                Kind::Metrics => (
                    vec!["\"unix:/x\"".into(), "\"[::1]:80\"".into()],
                    vec!["\"9112\"".into(), "\"unix:\"".into()],
                ),
                Kind::Interfaces => {
                    (vec!["[\"a\", \"b*\"]".into()], vec!["\"a\"".into(), "[\"a\", \"a\"]".into()])
                }
                Kind::Cpus => {
                    (vec!["\"0-3,5\"".into(), "[1]".into()], vec!["\"x\"".into(), "[]".into()])
                }
            };
            for value in right.iter().chain([&key.example.to_owned()]) {
                assert!(accepts(value), "{} = {value}", key.name);
            }
            for value in wrong {
                assert!(!accepts(&value), "{} = {value}", key.name);
            }
        }
    }

    #[test]
    fn the_defaults_of_the_table_are_those_in_effect() {
        for key in &KEYS {
            let Some(default) = key.default else { continue };
            let needed = if key.name == "busy_budget" { "poll = \"busy\"\n" } else { "" };
            let without = options(needed);
            let mut with = options(&format!("{needed}{} = {default}\n", key.name));
            if let (Some(one), Some(other)) = (&mut with.runtime_dir, &without.runtime_dir) {
                one.required = other.required;
            }
            assert_eq!(with, without, "{}", key.name);
        }
    }

    #[test]
    fn the_default_file_has_all_keys_as_comments() {
        let text = default_file();
        assert_eq!(
            options(text.trim_start_matches("[run]").split_once("[run]\n").expect("a section").1),
            options("")
        );
        for key in &KEYS {
            let value = key.default.unwrap_or(key.example);
            assert!(text.contains(&format!("\n#{} = {value}\n", key.name)), "{}", key.name);
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn the_documentation_has_each_key_as_the_table_has_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIG.md");
        let page = std::fs::read_to_string(path).expect("the page");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let rows: Vec<&&str> = rows.iter().filter(|row| !row.starts_with("| `ferroute ")).collect();
        assert_eq!(rows.len(), KEYS.len());
        for (key, row) in KEYS.iter().zip(rows) {
            let default = key.default.map_or(String::new(), |text| format!("`{text}`"));
            let effect = match key.effect {
                Effect::Reload => "yes".to_owned(),
                Effect::ReloadExcept(case) => format!("yes, not {case}"),
                Effect::Restart => "no".to_owned(),
            };
            let end = format!(" | {default} | {effect} | {} |", key.help);
            assert!(row.starts_with(&format!("| `{}` | ", key.name)), "{row}");
            assert!(row.ends_with(&end), "{row} does not end with {end}");
        }
    }

    #[test]
    fn the_schema_describes_each_key() {
        let schema = schema();
        let properties = schema["properties"]["run"]["properties"].as_object().expect("properties");
        assert_eq!(properties.len(), KEYS.len());
        for key in &KEYS {
            let property = &properties[key.name];
            assert_eq!(property["description"], key.help);
            let is_typed =
                ["type", "enum", "anyOf"].iter().any(|word| property.get(word).is_some());
            assert!(
                is_typed && property.get("default").is_some() == key.default.is_some(),
                "{property}"
            );
        }
        assert_eq!(properties["offload_threshold"]["maximum"], 65535);
        assert_eq!(properties["mode"]["default"], "auto");
        assert_eq!(properties["rx_ring"]["enum"][0], 64);
    }
}
