//! Stop strings, found across token borders.
