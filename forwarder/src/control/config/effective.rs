//! The options in effect, by key: what a file would have to say for them.

use serde_json::{Map, Value, json};

use super::keys::KEYS;
use super::{PollMode, RunOptions};

/// The serialised form of a word.
fn word(value: impl serde::Serialize) -> Option<Value> {
    serde_json::to_value(value).ok()
}

impl RunOptions {
    /// The value of a key; `None`: the daemon chooses, or there is no such key.
    pub fn value(&self, key: &str) -> Option<Value> {
        match key {
            "interfaces" => Some(json!(self.interfaces.words())),
            "max_ports" => self.max_ports.map(|n| json!(n)),
            "mode" => word(self.mode),
            "driver" => word(self.driver),
            "poll" => word(self.poll),
            // It is refused with other ways to poll.
            "busy_budget" => (self.poll == PollMode::Busy).then(|| json!(self.busy_budget)),
            "cpus" => self.cpus.as_ref().map(|list| json!(list.to_string())),
            "queues" => self.queues.map(|n| json!(n)),
            "pin_irqs" => Some(json!(self.pin_irqs)),
            "rx_ring" => Some(json!(self.rx_ring)),
            "tx_ring" => Some(json!(self.tx_ring)),
            "latency_sample" => Some(json!(self.latency_sample)),
            "offload" => word(self.offload.mode),
            "offload_threshold" => Some(json!(self.offload.threshold)),
            "offload_flows" => Some(json!(self.offload.flows)),
            "worker_timeout_ms" => Some(json!(self.timeouts.worker.as_millis() as u64)),
            "control_timeout_ms" => Some(json!(self.timeouts.control.as_millis() as u64)),
            "account" => Some(json!(self.account)),
            "ignore_firewall" => Some(json!(self.ignore_firewall)),
            "no_sandbox" => Some(json!(self.no_sandbox)),
            "metrics" => self.metrics.as_ref().map(|addr| json!(addr.to_string())),
            "log_level" => word(self.log_level),
            "log_format" => word(self.log_format),
            "runtime_dir" => self.runtime_dir.as_ref().map(|dir| json!(dir.path.to_string_lossy())),
            "state_dir" => Some(json!(self.state_dir.to_string_lossy())),
            "control" => Some(json!(self.control.to_string_lossy())),
            _ => None,
        }
    }

    /// The options as a file. Keys whose value the daemon chooses are comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("[run]\n");
        for key in &KEYS {
            text += &match self.value(key.name) {
                Some(value) => format!("{} = {}\n", key.name, toml_text(&value)),
                None => format!("# {}: not set\n", key.name),
            };
        }
        text
    }

    /// The same in JSON, without keys whose value the daemon chooses.
    pub fn to_json(&self) -> Value {
        let values =
            KEYS.iter().filter_map(|key| Some((key.name.to_owned(), self.value(key.name)?)));
        json!({ "run": values.collect::<Map<_, _>>() })
    }
}

/// A value in TOML: words, numbers, flags, and arrays of words.
pub fn toml_text(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_text).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::config::{Config, RunFlags};

    fn options(text: &str) -> RunOptions {
        let config = Config::parse(text, Path::new("e.toml"))
            .unwrap_or_else(|error| panic!("{text}{error}"));
        RunOptions::resolve(RunFlags::default(), config.run).expect("is right")
    }

    #[test]
    fn what_is_shown_is_a_file_with_the_same_effect() {
        let all = "[run]\ninterfaces = [\"a\", \"b*\"]\nmax_ports = 9\nmode = \"copy\"\npoll = \"busy\"\n\
                   busy_budget = 8\ncpus = [3, 0, 1]\nqueues = 2\npin_irqs = true\nrx_ring = 512\ntx_ring = 256\n\
                   latency_sample = 7\noffload = \"on\"\noffload_threshold = 5\noffload_flows = 4096\n\
                   worker_timeout_ms = 300\ncontrol_timeout_ms = 3000\naccount = true\nignore_firewall = true\nno_sandbox = true\n\
                   metrics = \"[::1]:9112\"\nlog_level = \"debug\"\nlog_format = \"json\"\nruntime_dir = \"/a \\\"b\\\"\"\ncontrol = \"/c\"\n";
        for text in [all, "[run]\ninterfaces = [\"a\"]\nruntime_dir = \"/r\"\n"] {
            let options = options(text);
            assert_eq!(self::options(&options.to_toml()), options, "{}", options.to_toml());
            let run = &options.to_json()["run"];
            assert_eq!(run["interfaces"][0], "a");
        }
        assert_eq!(options(all).to_json()["run"].as_object().expect("keys").len(), KEYS.len());
    }
}
