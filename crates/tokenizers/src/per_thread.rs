//! Caches and buffers that each thread keeps for each tokenizer. Access needs no lock.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

/// The identity of a tokenizer. It lives as long as the tokenizer, so that threads know when to free its buffers.
#[derive(Default)]
pub struct Owner(Arc<()>);

/// The buffers of one thread for all tokenizers of a kind. The buffers used last come first.
pub struct PerThread<T>(RefCell<Vec<(Weak<()>, Box<T>)>>);

/// The number of buffers that a thread keeps for each tokenizer: one for a long text, and one for another text that is tokenized
/// while the long text yields.
const KEPT: usize = 2;

impl Owner {
    fn is(&self, of: &Weak<()>) -> bool {
        std::ptr::eq(of.as_ptr(), Arc::as_ptr(&self.0))
    }
}

impl<T: Default> PerThread<T> {
    pub const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Runs `work` with this thread's buffers for `owner`. While a long text yields, other work can run inside of its `work`,
    /// with buffers of its own.
    pub fn with<R>(&self, owner: &Owner, work: impl FnOnce(&mut T) -> R) -> R {
        let mut buffers = self.take(owner).unwrap_or_default();
        let result = work(&mut buffers);
        let mut all = self.0.borrow_mut();
        if all.iter().filter(|(of, _)| owner.is(of)).count() < KEPT {
            all.insert(0, (Arc::downgrade(&owner.0), buffers));
        }
        result
    }

    fn take(&self, owner: &Owner) -> Option<Box<T>> {
        let mut all = self.0.borrow_mut();
        let found = all.iter().position(|(of, _)| owner.is(of));
        if found.is_none() {
            all.retain(|(of, _)| of.strong_count() > 0);
        }
        found.map(|at| all.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_has_its_own_until_it_is_dropped() {
        let all = PerThread::<String>::new();
        let (first, second) = (Owner::default(), Owner::default());
        all.with(&first, |text| text.push('1'));
        all.with(&second, |text| text.push('2'));
        all.with(&first, |text| text.push('1'));
        assert_eq!(all.with(&first, |text| text.clone()), "11");
        assert_eq!(all.with(&second, |text| text.clone()), "2");
        drop(first);
        assert_eq!(all.with(&Owner::default(), |text| text.clone()), "");
        assert_eq!(all.0.borrow().len(), 2);
    }

    #[test]
    fn work_inside_of_work_has_buffers_of_its_own_that_are_kept() {
        let all = PerThread::<String>::new();
        let owner = Owner::default();
        for _ in 0..2 {
            all.with(&owner, |outer| {
                "outer".clone_into(outer);
                all.with(&owner, |middle| {
                    "middle".clone_into(middle);
                    all.with(&owner, |inner| "inner".clone_into(inner));
                    assert_eq!(middle, "middle");
                });
                assert_eq!(outer, "outer");
            });
            assert_eq!(all.0.borrow().len(), KEPT);
        }
    }
}
