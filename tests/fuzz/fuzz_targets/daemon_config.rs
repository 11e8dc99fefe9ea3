//! A configuration file: accepted or refused with a message, and what is accepted dumps to something accepted.
#![no_main]

use cacheletd::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = text.parse::<Config>() {
        let dumped = toml::to_string(&config).expect("a configuration can be printed");
        dumped.parse::<Config>().expect("a printed configuration loads");
    }
});
