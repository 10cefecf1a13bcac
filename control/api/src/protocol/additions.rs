//! Requests of a later schema: their unknown fields are left out before a strict type reads them.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// A value that is read without the fields, at any depth, that its type does not have.
pub struct Known(pub Value);

impl IntoDeserializer<'_, Error> for Known {
    type Deserializer = Known;

    fn into_deserializer(self) -> Known {
        self
    }
}

impl<'de> Deserializer<'de> for Known {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Known))),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Known(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(object) = &mut self.0 {
            object.retain(|name, _| fields.contains(&name.as_str()));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(object) if object.len() == 1 => match object.into_iter().next() {
                Some((variant, content)) => visitor.visit_enum(Variant(variant, Known(content))),
                None => Value::Null.deserialize_enum(name, variants, visitor),
            },
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// A variant of an enum, `{"name": content}`.
struct Variant(String, Known);

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Known;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Known), Error> {
        Ok((seed.deserialize(self.0.into_deserializer())?, self.1))
    }
}

impl<'de> VariantAccess<'de> for Known {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        serde::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use crate::protocol::{Code, SCHEMA, parse_request};
    use crate::uvnd::message::{Claim, Release, Request};

    fn parse(schema: u32, request: &str) -> Result<Request, Code> {
        let packet = format!(r#"{{"version":1,"schema":{schema},"request":{request}}}"#);
        parse_request(packet.as_bytes()).map_err(|failure| failure.code)
    }

    #[test]
    fn additions_of_a_later_schema_are_ignored_at_any_depth() {
        let request =
            r#"{"detach":{"uid":5,"what":{"claim":{"job":{"job":"1.0","pid":7,"node":3}}},"why":{"a":[1]}}}"#;
        let what = Release::Claim(Claim::Job { job: "1.0".into(), pid: 7 });
        assert_eq!(parse(SCHEMA + 1, request), Ok(Request::Detach { uid: 5, what, dry_run: false }));
        assert_eq!(parse(SCHEMA + 1, r#""ping""#), Ok(Request::Ping));
        let packet = br#"{"version":1,"schema":9,"since":1,"request":{"list":{"from":2,"of":[]}}}"#;
        assert_eq!(parse_request(packet), Ok(Request::List { from: 2 }));
        for schema in [0, SCHEMA] {
            assert_eq!(parse(schema, request), Err(Code::Malformed), "{schema}");
        }
    }

    #[test]
    fn what_is_needed_is_needed_in_every_schema() {
        for wrong in
            [r#""purge""#, r#"{"purge":{}}"#, r#"{"attach":{"uid":5,"why":1}}"#, r#"{"detach":5}"#, "{}", "7"]
        {
            assert_eq!(parse(SCHEMA + 1, wrong), Err(Code::Malformed), "{wrong}");
        }
    }
}
