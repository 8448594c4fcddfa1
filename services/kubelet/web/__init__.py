"""The HTTP edge: `readonly` on loopback for everyone, `secure` with TLS for those who may.

The original serves both from one set of handlers; here the pages that both have are in `pages`.
"""

from __future__ import annotations

from services.kubelet.web.readonly import Views, application

__all__ = ["Views", "application"]
