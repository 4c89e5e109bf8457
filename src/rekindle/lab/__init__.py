"""The papers' claims, reproduced small on data everyone has."""
