//! Parses a field that holds inputs. The error for an invalid element names its position.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{SHAPES, whole};
use crate::openai::Inputs;
use layer0::embedder::Input;

/// Deserializes [`Inputs`] or null.
#[derive(Clone, Copy)]
pub(in crate::openai) struct List {
    pub field: &'static str,
    /// The number of inputs that are kept.
    pub max: usize,
}

impl List {
    fn wrong<E: Error>(self, found: &str) -> E {
        E::custom(format!("'{}' is {found}, but must be {SHAPES}", self.field))
    }
}

impl<'de> DeserializeSeed<'de> for List {
    type Value = Option<Inputs>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Inputs>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List {
    type Value = Option<Inputs>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHAPES)
    }

    fn visit_unit<E>(self) -> Result<Option<Inputs>, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<Inputs>, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Option<Inputs>, E> {
        Ok(Some(Inputs { list: vec![Input::Text(text)], count: 1 }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Inputs>, A::Error> {
        let field = self.field;
        let mut inputs = Inputs::default();
        let element = |index| Element { field, index, within: None };
        match seq.next_element_seed(element(0))? {
            None => {
                return Err(Error::custom(format!("'{field}' is an empty array; send at least one input")));
            }
            Some(Item::TokenId(first)) => {
                let mut ids = vec![first];
                while let Some(id) = seq.next_element_seed(TokenId(element(ids.len())))? {
                    ids.push(id);
                }
                inputs = Inputs { list: vec![Input::TokenIds(ids)], count: 1 };
            }
            Some(Item::Input(first)) => {
                inputs.list.push(first);
                inputs.count = 1;
                while inputs.count < self.max {
                    match seq.next_element_seed(element(inputs.count))? {
                        None => return Ok(Some(inputs)),
                        // Texts and arrays may be mixed: LangChain sends "" between arrays of
                        // IDs for empty documents.
                        Some(Item::Input(input)) => inputs.list.push(input),
                        Some(Item::TokenId(id)) => {
                            return Err(Error::custom(format!(
                                "{field}[{}] is the number {id}, but '{field}' begins with a text or an array; send token \
                                                                 IDs in a list of their own, or in arrays of their own",
                                inputs.count
                            )));
                        }
                    }
                    inputs.count += 1;
                }
                // The rest is over the limit. It is only counted, for the error message.
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    inputs.count += 1;
                }
            }
        }
        Ok(Some(inputs))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Option<Inputs>, E> {
        Err(self.wrong(&value.to_string()))
    }

    refuse!(number object);
}

/// An element of the array.
enum Item {
    Input(Input),
    TokenId(u32),
}

/// The position of an element.
#[derive(Clone, Copy)]
struct Element {
    field: &'static str,
    index: usize,
    /// The index of the inner array of token IDs that contains the element, or `None` for an element of the outer
    /// array.
    within: Option<usize>,
}

impl Element {
    fn wrong<E: Error>(self, found: impl fmt::Display) -> E {
        let Self { field, index, within } = self;
        E::custom(match within {
            Some(outer) => format!(
                "{field}[{outer}][{index}] is {found}, but token IDs in '{field}' must be whole numbers from 0 to {}",
                u32::MAX
            ),
            None => format!("{field}[{index}] is {found}, but '{field}' must be {SHAPES}"),
        })
    }

    fn id<E: Error>(self, id: u64) -> Result<u32, E> {
        u32::try_from(id).map_err(|_| self.wrong(id))
    }

    fn whole<E: Error>(self, id: f64) -> Result<u32, E> {
        whole(id).map_or_else(|| Err(self.wrong(id)), |id| self.id(id))
    }
}

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHAPES)
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Input(Input::Text(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Item, E> {
        Ok(Item::Input(Input::Text(text)))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
        self.id(id).map(Item::TokenId)
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<Item, E> {
        Err(self.wrong(id))
    }

    fn visit_f64<E: Error>(self, id: f64) -> Result<Item, E> {
        self.whole(id).map(Item::TokenId)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        let within = Some(self.index);
        while let Some(id) = seq.next_element_seed(TokenId(Self { index: ids.len(), within, ..self }))? {
            ids.push(id);
        }
        Ok(Item::Input(Input::TokenIds(ids)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Item, E> {
        Err(self.wrong(value))
    }

    refuse!(null object);
}

struct TokenId(Element);

impl<'de> DeserializeSeed<'de> for TokenId {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TokenId {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token ID")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<u32, E> {
        self.0.id(id)
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<u32, E> {
        Err(self.0.wrong(id))
    }

    fn visit_f64<E: Error>(self, id: f64) -> Result<u32, E> {
        self.0.whole(id)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<u32, E> {
        Err(self.0.wrong("a string"))
    }

    fn visit_unit<E: Error>(self) -> Result<u32, E> {
        Err(self.0.wrong("null"))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<u32, E> {
        Err(self.0.wrong(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<u32, A::Error> {
        Err(self.0.wrong("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<u32, A::Error> {
        Err(self.0.wrong("an object"))
    }
}
