//! Does this machine have second-level address translation, is it on, is it used?.
