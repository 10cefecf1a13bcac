//! Lists of verdicts: one definition makes the enum, the order of its counters, their names, and which of them are
//! losses.

/// Makes an enum of verdicts. Each variant has its name in statistics, and `drops` or `passes`: whether the frame,
/// packet or socket went no further. The value of a variant is its index in the counters.
#[macro_export]
macro_rules! verdicts {
    (
        $(#[$of_enum:meta])*
        pub enum $Verdict:ident {
            $($(#[$of_variant:meta])+ $variant:ident = $name:literal $fate:ident,)+
        }
    ) => {
        $(#[$of_enum])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $Verdict { $($(#[$of_variant])+ $variant,)+ }

        impl $Verdict {
            /// Every one, in the order of the counters.
            pub const ALL: [$Verdict; [$($name),+].len()] = [$($Verdict::$variant),+];

            /// The name in statistics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($Verdict::$variant => $name,)+ }
            }

            /// Whether what it counts went no further.
            #[must_use]
            pub const fn is_drop(self) -> bool {
                match self { $($Verdict::$variant => $crate::verdicts!(@ $fate),)+ }
            }
        }
    };
    (@ drops) => { true };
    (@ passes) => { false };
}

#[cfg(test)]
mod tests {
    crate::verdicts! {
        /// Two.
        pub enum Verdict {
            /// It passes.
            Pass = "pass" passes,
            /// It does not.
            Bad = "bad" drops,
        }
    }

    #[test]
    fn each_has_its_place_name_and_fate() {
        let all = Verdict::ALL.map(|verdict| (verdict as usize, verdict.name(), verdict.is_drop()));
        assert_eq!(all, [(0, "pass", false), (1, "bad", true)]);
    }
}
