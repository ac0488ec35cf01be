//! Changes of options while the daemon runs: which take effect, and which need a restart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunOptions;
use super::keys::KEYS;

/// A key with another value than before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyChange {
    /// Its name.
    pub key: String,
    /// The value before; none: the daemon chose.
    pub from: Option<Value>,
    /// The value now; none: the daemon is to choose.
    pub to: Option<Value>,
    /// It is in effect. Otherwise it needs a restart.
    pub applied: bool,
}

impl RunOptions {
    /// Takes those values of `new` over that can take effect while the daemon runs. `is_offloading`: flow offload was
    /// not off at the start. Returns all keys that differ, in the order of the documentation.
    pub fn take(&mut self, new: &RunOptions, is_offloading: bool) -> Vec<KeyChange> {
        let mut changes = Vec::new();
        for key in KEYS.iter().map(|key| key.name) {
            let (from, to) = (self.value(key), new.value(key));
            if from != to {
                let applied = self.take_key(key, new, is_offloading);
                changes.push(KeyChange { key: key.to_owned(), from, to, applied });
            }
        }
        changes
    }

    fn take_key(&mut self, key: &str, new: &RunOptions, is_offloading: bool) -> bool {
        match key {
            "interfaces" => self.interfaces = new.interfaces.clone(),
            // Without measurements there is no memory for them.
            "latency_sample" if self.latency_sample != 0 && new.latency_sample != 0 => {
                self.latency_sample = new.latency_sample;
            }
            "offload" if is_offloading => self.offload.mode = new.offload.mode,
            "offload_threshold" if is_offloading => {
                self.offload.threshold = new.offload.threshold;
            }
            "log_level" => self.log_level = new.log_level,
            "worker_timeout_ms" => self.timeouts.worker = new.timeouts.worker,
            "control_timeout_ms" => self.timeouts.control = new.timeouts.control,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::config::keys::Effect;
    use crate::control::config::{Config, RunFlags};

    fn options(lines: &str) -> RunOptions {
        let text = format!("[run]\n{lines}");
        let config = Config::parse(&text, Path::new("r.toml")).expect("is right");
        let flags = RunFlags { interfaces: vec!["i*".into()], ..RunFlags::default() };
        let flags = if lines.contains("interfaces") { RunFlags::default() } else { flags };
        RunOptions::resolve(flags, config.run).expect("is right")
    }

    #[test]
    fn each_key_takes_effect_as_the_table_says() {
        for key in &KEYS {
            let needed = if key.name == "busy_budget" { "poll = \"busy\"\n" } else { "" };
            if key.name == "driver" {
                // Another one may not be built.
                continue;
            }
            // Its example is the default.
            let value = if key.name == "control" { "\"/c\"" } else { key.example };
            let before = options(needed);
            let new = options(&format!("{needed}{} = {}\n", key.name, value));
            let mut now = before.clone();
            let changes = now.take(&new, true);
            let change = changes.iter().find(|change| change.key == key.name).expect("it differs");
            assert_eq!(change.applied, key.effect != Effect::Restart, "{}", key.name);
            assert_eq!(now.value(key.name) == new.value(key.name), change.applied, "{}", key.name);
            // The control socket is in the runtime directory.
            assert!(changes.len() == 1 || key.name == "runtime_dir", "{changes:?}");
            assert_eq!(now.take(&new, true).len(), changes.iter().filter(|it| !it.applied).count());
        }
    }

    #[test]
    fn what_was_off_at_the_start_needs_a_restart() {
        let mut off = options("offload = \"off\"\nlatency_sample = 0\n");
        let changes = off.take(&options("offload_threshold = 3\n"), false);
        assert!(changes.iter().all(|change| !change.applied), "{changes:?}");
        assert_eq!(changes.len(), 3);
        let mut on = options("");
        let changes = on.take(&options("offload = \"off\"\nlatency_sample = 0\n"), true);
        let applied: Vec<bool> = changes.iter().map(|change| change.applied).collect();
        assert_eq!(applied, [false, true], "{changes:?}");
    }
}
