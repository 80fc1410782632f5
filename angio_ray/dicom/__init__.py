"""Untrusted DICOM bytes in, a `ClipHeader` and model inputs out. `reader.ClipReader` is the way in for everybody else.

`header` finds elements, `facts` says what they mean, `timing` when each frame was taken, `pixel_data` where each frame
lies, `codecs` decodes one, `decoding` puts these together in a child process, `sandbox` is that child.
Importing this package imports none of them.
"""
