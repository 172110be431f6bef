//! Progress bars with rate and time left; without a terminal nothing but notes.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;
use crate::progress::Progress;

/// On stderr, for as long as some work lasts.
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    pub fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn draw(&self, template: &str, what: &str, done: u64, total: u64) {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // indicatif draws on a terminal alone.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        bar.set_position(done);
        // The rate is of what this run brings.
        bar.reset_eta();
        self.with(|current| *current = Some(bar));
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, done: u64, total: u64) {
        self.draw("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left", what, done, total);
    }

    fn start_counted(&self, what: &str, total: u64) {
        self.draw("{msg} {wide_bar} {pos}/{len} {eta} left", what, 0, total);
    }

    fn advance(&self, by: u64) {
        self.with(|current| current.iter().for_each(|bar| bar.inc(by)));
    }

    fn finish(&self) {
        self.with(|current| {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn note(&self, text: &str) {
        say(text);
    }
}
