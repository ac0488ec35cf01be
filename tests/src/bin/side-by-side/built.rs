//! The programs that cargo has built, read from its messages, because names in `target/` contain hashes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Executables by the name of their target.
#[derive(Debug, Default)]
pub struct Built(BTreeMap<String, PathBuf>);

impl Built {
    /// Parses the output of `cargo build --message-format=json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let executable = |message: Value| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, message["executable"].as_str()?.into()))
        };
        Self(messages.filter_map(executable).collect())
    }

    /// The executable of a target.
    pub fn path(&self, target: &str) -> Result<&Path> {
        let path = self.0.get(target).map(PathBuf::as_path);
        path.with_context(|| format!("{target} was not built"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_the_messages() {
        let built = Built::parse(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"x\"},\"executable\":null}\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"fib\"},\
             \"executable\":\"/t/fib-1\"}\nnot JSON\n{\"reason\":\"build-finished\"}\n",
        );
        assert_eq!(built.path("fib").expect("was built"), Path::new("/t/fib-1"));
        assert_eq!(built.path("x").expect_err("is a library").to_string(), "x was not built");
    }
}
