//! Modules that the kernel loads on request.
//!
//! A request for a part of the kernel that is not there has it start modprobe, and the caller waits until that has
//! ended (`request_module`). Where the module does not exist this is repeated with each request, and takes
//! milliseconds to a second. Therefore a request that failed for this reason is repeated only after the module has
//! appeared.

use std::path::Path;

/// Loaded modules, and built-in ones with parameters or a version.
const MODULES: &str = "/sys/module";

/// A module that requests need.
#[derive(Debug)]
pub struct Module {
    name: &'static str,
    was_missing: bool,
}

impl Module {
    /// The module `name`, with underscores, as in /sys/module.
    pub const fn new(name: &'static str) -> Module {
        Module { name, was_missing: false }
    }

    /// Whether a request may be sent. False after [`Module::set_missing`], until sysfs has the module; without sysfs
    /// always true.
    pub fn may_be_asked(&self) -> bool {
        !self.was_missing
            || !Path::new(MODULES).is_dir()
            || Path::new(MODULES).join(self.name).is_dir()
    }

    /// The kernel has answered that it has no such part.
    pub fn set_missing(&mut self) {
        self.was_missing = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_module_is_asked_for_once_and_when_it_is_loaded() {
        let mut missing = Module::new("ferroute_no_such_module");
        assert!(missing.may_be_asked());
        missing.set_missing();
        assert!(!missing.may_be_asked());
        let any = std::fs::read_dir(MODULES).expect("sysfs").flatten().next().expect("a module");
        let name = any.file_name().into_string().expect("a name");
        let mut loaded = Module { name: name.leak(), was_missing: false };
        loaded.set_missing();
        assert!(loaded.may_be_asked());
    }
}
