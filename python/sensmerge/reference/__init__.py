"""All methods in plain NumPy and float64, to be read, and to test the core against.

Nothing here is fast, and nothing in the package calls it. Sources: Sens-Merging (Liu et al.), task
arithmetic (Ilharco et al. 2023), TIES (Yadav et al. 2023), DARE (Yu et al. 2024), Model Breadcrumbs
(Davari and Belilovsky 2023), DELLA (Deep, Bhardwaj and Poria 2024), SCE (Wan et al. 2024), RAM
(arXiv 2601.13572), spherical interpolation (Shoemake 1985), the Karcher mean (Grove and Karcher
1973), Model Stock (Jang et al. 2024), MagMax (Marczak et al. 2024), EMR-Merging (Huang et al.
2024), Consensus Task Arithmetic (Wang et al. 2024), PCB-Merging (Du et al. 2024), WIDEN (Yu et al.
2024), WSM (Tian et al. 2025), TSV-Merge (Gargiulo et al. 2025), Iso-C and Iso-CTS (Marczak et al.
2025), ACTMat, WUDI (Cheng et al. 2025), Fisher merging (Matena and Raffel 2022), RegMean (Jin et
al. 2023), AIM (Heyrani Nobari et al. 2025), Git Re-Basin (Ainsworth et al. 2023), Philox (Salmon et
al. 2011), and mergekit.

A model is a mapping of arrays by tensor name. ``weights[name]`` holds one weight per expert: the
recipe's weight times K·σ of the tensor's layer (Eq. 7). K is the number of experts, L that of
layers.
"""

from __future__ import annotations

from sensmerge.reference.angles import karcher, model_stock, multislerp, nuslerp, slerp
from sensmerge.reference.arrays import Array, Model
from sensmerge.reference.choices import consensus, emr, magmax, pcb, wsm
from sensmerge.reference.coefficients import sensitivity, sigma
from sensmerge.reference.columns import widen
from sensmerge.reference.consensus import disjoint, elect
from sensmerge.reference.entries import arcee_fusion, importance, nearswap, passthrough, ram, sce
from sensmerge.reference.matrices import (
    by_matrix,
    iso_c,
    iso_cts,
    mean_of_weighted,
    nearest,
    tsv,
    weighted_mean,
)
from sensmerge.reference.merging import linear, merge
from sensmerge.reference.sparse import (
    band,
    band_of_rows,
    drop,
    keep_mask,
    philox4x32,
    preserve_l1,
    ranked_chances,
    trim_model,
    trim_tensor,
)
from sensmerge.reference.statistics import aim, fisher, regmean
from sensmerge.reference.units import best_nested_order, best_order

__all__ = [
    "Array",
    "Model",
    "aim",
    "arcee_fusion",
    "band",
    "band_of_rows",
    "best_nested_order",
    "best_order",
    "by_matrix",
    "consensus",
    "disjoint",
    "drop",
    "elect",
    "emr",
    "fisher",
    "importance",
    "iso_c",
    "iso_cts",
    "karcher",
    "keep_mask",
    "linear",
    "magmax",
    "mean_of_weighted",
    "merge",
    "model_stock",
    "multislerp",
    "nearest",
    "nearswap",
    "nuslerp",
    "passthrough",
    "pcb",
    "philox4x32",
    "preserve_l1",
    "ram",
    "ranked_chances",
    "regmean",
    "sce",
    "sensitivity",
    "sigma",
    "slerp",
    "trim_model",
    "trim_tensor",
    "tsv",
    "weighted_mean",
    "widen",
    "wsm",
]
