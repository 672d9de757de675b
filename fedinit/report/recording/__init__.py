"""What a run writes into its folder for its report, besides metrics.csv and clients.csv: the folder `record/`.

provenance.json   command, versions and machine
partition.json    how many images of each class a client has; samples/ a few of them, a strip a client
layers.csv        a row a layer and round: aggregation bias, and what was made of it
spectra.csv       a row a layer and evaluated round: singular values of the update
timing.csv        a row a round: seconds by phase, memory
"""

RECORD = "record"
TIMING, LAYERS, SPECTRA = "timing.csv", "layers.csv", "spectra.csv"
PROVENANCE, PARTITION, SAMPLES = "provenance.json", "partition.json", "samples"
